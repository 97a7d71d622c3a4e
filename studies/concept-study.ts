/** Whether a method learns concepts from eight pictures each, scored by a process that knows the exported file alone. */
import { type ConceptSet, conceptNames, readConcept, type StudyPicture } from "./concepts.ts";
import type { Kept } from "./kept.ts";
import { type ConceptMethod, conceptPlans } from "./plans.ts";
import type { Products } from "./products.ts";
import { type Control, controlSchema, type Scored, scoredSchema, type Trained } from "./results.ts";
import { exported, type TrainingAsked, trained } from "./training.ts";
import { shortfalls } from "./verdict.ts";

const drawing = { steps: 20, seed: 7, width: 128, height: 128 };

export async function studyConcepts(method: ConceptMethod, products: Products, kept: Kept, say: (line: string) => void): Promise<void> {
  const concepts = conceptNames.map(readConcept);
  for (const concept of concepts) {
    const part = `${method}/${concept.name}`;
    const result = await trained(products.trainer, kept, part, request(method, concept));
    const { scores } = await kept.part(`${part}/scored`, scoredSchema, () => score(products, kept, part, method, concept, result));
    const missed = shortfalls(scores);
    say(`${concept.name}: ${missed.length === 0 ? "learned" : missed.join("; ")} (${result.report.seconds.toFixed(0)} s)`);
    await drawBeforeAndAfter(products, kept, part, method, concept, result);
  }
  for (const [i, concept] of concepts.slice(0, 2).entries())
    for (const control of await runControls(method, concept, concepts[(i + 1) % concepts.length]!, products, kept))
      say(`${concept.name}, ${control.control}: ${control.shortfalls.length === 0 ? "PASSES, which it must not" : "fails, as it must"}`);
}

function request(method: ConceptMethod, concept: ConceptSet): TrainingAsked {
  const { budget, ...plan } = conceptPlans[method](concept);
  return {
    pictures: async () => concept.pictures,
    tokens: [concept.token],
    classPrompt: concept.isObject ? "toy" : null,
    body: { ...plan, budget, seed: 1 },
  };
}

/** LoRA files are scored by the serving product, as a training of no steps from the file; other kinds have no such start. */
async function score(
  { server }: Products,
  kept: Kept,
  part: string,
  method: ConceptMethod,
  concept: ConceptSet,
  result: Trained,
): Promise<Scored> {
  if (method === "lora") return { by: "serving process", scores: await scoreLora(server, kept, part, result, concept) };
  if (!result.report.scores) throw new Error(`${part}: expected scores in the training's report`);
  return { by: "training", scores: result.report.scores };
}

async function scoreLora(server: Products["server"], kept: Kept, part: string, result: Trained, concept: ConceptSet) {
  const name = part.replaceAll("/", "-");
  const adapter = await server.upload(name, [exported(kept, part, result)], null);
  const { body, classPrompt, tokens } = request("lora", concept);
  if (body.settings.method !== "lora") throw new Error(`${part}: expected the settings of a LoRA`);
  const view = await server.train({
    ...body,
    name: `${name}-scored`,
    model: "pocket",
    dataset: await server.dataset(name, concept.pictures),
    concepts: tokens.map(token => ({ token, class_prompt: classPrompt })),
    resolution: 128,
    settings: { ...body.settings, start_from: adapter },
    steps: 0,
  });
  if (!view.report?.scores) throw new Error(`${name}: expected scores of a training of no steps`);
  return view.report.scores;
}

/** Two test captions drawn with and without the adapter by the serving product; DreamBooth's as the LoRA that was extracted. */
async function drawBeforeAndAfter(
  { server }: Products,
  kept: Kept,
  part: string,
  method: ConceptMethod,
  concept: ConceptSet,
  result: Trained,
): Promise<void> {
  if (kept.read(`${part}/after-1.png`)) return;
  const token = method === "textual-inversion" ? concept.token : null;
  const adapter = await server.upload(`${part.replaceAll("/", "-")}-drawn`, [exported(kept, part, result)], token);
  const captions = concept.pictures.filter(({ split }) => split === "test").map(({ caption }) => caption);
  for (const i of [0, 1]) {
    const prompt = captions[i]!;
    kept.write(`${part}/before-${i}.png`, await server.draw({ ...drawing, prompt }));
    kept.write(`${part}/after-${i}.png`, await server.draw({ ...drawing, prompt, adapters: [{ adapter }] }));
  }
}

/** What must not count as learned. */
async function runControls(
  method: ConceptMethod,
  concept: ConceptSet,
  other: ConceptSet,
  products: Products,
  kept: Kept,
): Promise<Control[]> {
  const own = request(method, concept);
  const asControl = async (control: Control["control"], file: string, scored: () => Promise<Scored["scores"]>) =>
    kept.part(`${method}/controls/${concept.name}-${file}`, controlSchema, async () => {
      const scores = await scored();
      return { control, scores, shortfalls: shortfalls(scores) };
    });
  const trainedAs = async (file: string, changes: Partial<TrainingAsked>) => {
    const part = `${method}/controls/${concept.name}-${file}-training`;
    const result = await trained(products.trainer, kept, part, { ...own, ...changes });
    return (await score(products, kept, part, method, concept, result)).scores;
  };
  const optimizer = { ...own.body.optimizer, learning_rate: 0, text_learning_rate: 0 };
  const controls = [
    await asControl("learning rate 0", "rate-0", () => trainedAs("rate-0", { body: { ...own.body, optimizer } })),
    await asControl("trained on the base's own pictures", "own-pictures", () =>
      trainedAs("own-pictures", { pictures: () => basePictures(products, concept) }),
    ),
  ];
  if (method !== "lora") return controls;
  const part = `${method}/${other.name}`;
  const result = await trained(products.trainer, kept, part, request(method, other));
  const another = await asControl("another concept's adapter", "other", () => scoreLora(products.server, kept, part, result, concept));
  return [...controls, another];
}

/** The concept's captions as the base model draws them, to learn from; its true test pictures. */
function basePictures({ trainer }: Products, { pictures }: ConceptSet): Promise<StudyPicture[]> {
  return Promise.all(
    pictures.map(async (picture, i) => {
      if (picture.split === "test") return picture;
      return { ...picture, png: await trainer.draw({ ...drawing, seed: 100 + i, prompt: picture.caption, guidance_scale: 1 }) };
    }),
  );
}
