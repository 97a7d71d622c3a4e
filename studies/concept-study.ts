/** Whether a method learns concepts from eight pictures each, scored by a product that knows the exported file alone. */
import { type ConceptSet, conceptNames, readConcept, type StudyPicture } from "./concepts.ts";
import { type ConceptMethod, conceptPlans } from "./plans.ts";
import { type ConceptResult, type Control, type ControlRow, controls, type Row } from "./results.ts";
import type { Study } from "./study.ts";
import { type Concept, costOf, evaluated, exportedFiles, type TrainingAsked, trained } from "./training.ts";
import { shortfalls } from "./verdict.ts";
import { genericPictures } from "./world-pictures.ts";

/** What the controls are made of. */
const [controlled, other] = ["object-rocket", "object-mushroom"];

export async function studyConcepts(method: ConceptMethod, study: Study): Promise<void> {
  const result: ConceptResult = { kind: "concepts", rows: [], controls: [] };
  for (const concept of conceptNames.map(readConcept)) {
    const part = `${method}/${concept.name}`;
    const made = await trained(study.products.trainer, study.kept, part, request(method, concept));
    const { scores, missed } = await score(study, method, `${part}/scores`, part, concept);
    const row: Row = { concept: concept.name, token: concept.token, cost: costOf(made), scores };
    result.rows.push(row);
    const grid = study.kept.read(`${part}/scores.png`);
    if (grid) await study.picture(`${method}-${concept.name}`, grid);
    study.say(`${concept.name}: ${missed.length === 0 ? "learned" : missed.join("; ")} (${made.wall_seconds.toFixed(0)} s)`);
    study.finished(method, result);
    if (concept.name === controlled) {
      for (const control of Object.keys(controls) as Control[]) result.controls.push(await runControl(study, method, control));
      study.finished(method, result);
    }
  }
}

const named = ({ token, isObject }: ConceptSet): Concept => ({ token, class_prompt: isObject ? "toy" : "style" });

/** What a training sees: none of the pictures that are scored. */
function request(method: ConceptMethod, concept: ConceptSet): TrainingAsked {
  return {
    pictures: async () => concept.pictures.filter(({ split }) => split === "train"),
    concepts: [named(concept)],
    body: conceptPlans[method](concept),
  };
}

/** Of the file of a training that is kept as `part`, on a concept's held-out pictures and on pictures of the world. */
async function score({ products, kept }: Study, method: ConceptMethod, scoresPart: string, part: string, concept: ConceptSet) {
  const made = await trained(products.trainer, kept, part, request(method, concept));
  const captions = concept.pictures.filter(({ split }) => split === "test").map(({ caption }) => caption);
  const { scores } = await evaluated(products.server, kept, scoresPart, {
    files: exportedFiles(kept, part, made),
    pictures: [...concept.pictures, ...(await genericPictures())],
    concepts: [named(concept)],
    ...{ scoring: { pictures: 8, prior_pictures: 8, steps: 8 }, prompts: captions.slice(0, 3) },
  });
  return { scores, missed: shortfalls(scores, method === "textual-inversion") };
}

async function runControl(study: Study, method: ConceptMethod, control: Control): Promise<ControlRow> {
  const concept = readConcept(controlled);
  const own = request(method, concept);
  const part = `${method}/control-${control}`;
  const { trainer } = study.products;
  const optimizer = { ...own.body.optimizer, learning_rate: 0, ...(method !== "textual-inversion" && { text_learning_rate: 0 }) };
  const changes = {
    "rate-0": { body: { ...own.body, optimizer } },
    "own-pictures": { pictures: () => basePictures(study, concept) },
    other: request(method, readConcept(other)),
  } satisfies Record<Control, Partial<TrainingAsked>>;
  await trained(trainer, study.kept, part, { ...own, ...changes[control] });
  const { scores, missed } = await score(study, method, `${part}/scores`, part, concept);
  study.say(`${controls[control]}: ${missed.length === 0 ? "PASSES, which it must not" : `fails, as it must: ${missed.join("; ")}`}`);
  return { control, concept: concept.name, token: concept.token, scores };
}

/** The concept's captions as the base model draws them, to learn from. */
async function basePictures({ products }: Study, { pictures }: ConceptSet): Promise<StudyPicture[]> {
  const drawn: StudyPicture[] = [];
  for (const [i, picture] of pictures.entries()) {
    if (picture.split !== "train") continue;
    const asked = { prompt: picture.caption, seed: 100 + i, steps: 20, width: 128, height: 128 };
    drawn.push({ ...picture, png: await products.trainer.draw(asked) });
  }
  return drawn;
}
