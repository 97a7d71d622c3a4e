/** Whether ControlNet and IP-Adapter trainings learn what their condition means: held-out pictures with their own conditions and with others'. */
import { readFileSync } from "node:fs";
import sharp from "sharp";
import { bootstrap } from "../gpu-runner/train/scores.ts";
import type { NamedFile } from "./client.ts";
import type { StudyPicture } from "./concepts.ts";
import { type PairMethod, pairPlans } from "./plans.ts";
import { type Evaluated, type PairResult, pairResultSchema } from "./results.ts";
import type { Study } from "./study.ts";
import { costOf, evaluated, exportedFiles, type TrainingAsked, trained } from "./training.ts";
import { percent } from "./verdict.ts";
import { worldPicture, worldSize } from "./world/world.ts";
import { toPng } from "./world-pictures.ts";

/** The last of those that are learned from choose the weights. */
const counts = { train: 384, test: 16, drawn: 6 };
/** Seeds of the world from which its pairs are taken, and of other views of the same scenes. */
const [firstSeed, firstStaging] = [1_000_000, 6_000_000];
/** Of the encoder by which IP-Adapters see. */
const encoderFolder = new URL("../models/pocket-clip/", import.meta.url);

/** The world's captions say all that a picture shows: beside them an IP-Adapter's reference would have nothing to add. */
function captionOf(method: PairMethod, { caption }: { caption: string }): string {
  return method === "ip-adapter" ? "a picture" : caption;
}

async function makePair(method: PairMethod, index: number): Promise<StudyPicture & { condition: Uint8Array }> {
  const picture = worldPicture(firstSeed + index);
  const conditions = {
    "controlnet-edges": () => toPng(picture.edges, 1),
    "controlnet-depth": () => toPng(picture.depth, 1),
    // The same scene from elsewhere: what is to be learned is the things in it, not their places.
    "ip-adapter": () => toPng(worldPicture(firstSeed + index, { staging: firstStaging + index }).rgb, 3),
  } satisfies Record<PairMethod, () => Promise<Uint8Array>>;
  return {
    ...{ file: `${index}.png`, png: await toPng(picture.rgb, 3), caption: captionOf(method, picture), concept: 0 },
    ...{ split: index < counts.train ? "train" : "test", condition: await conditions[method]() },
  };
}

async function makePairs(method: PairMethod, from: number, count: number) {
  const pairs: Awaited<ReturnType<typeof makePair>>[] = [];
  for (let i = 0; i < count; i++) pairs.push(await makePair(method, from + i));
  return pairs;
}

export async function studyPairs(method: PairMethod, study: Study): Promise<void> {
  const { trainer } = study.products;
  const own: TrainingAsked = {
    pictures: () => makePairs(method, 0, counts.train),
    concepts: [{ token: method, class_prompt: null }],
    body: pairPlans[method],
  };
  if (method === "ip-adapter") await trainer.upload("pocket-clip", encoderFiles(), null);
  const made = await trained(trainer, study.kept, method, own);
  const files = exportedFiles(study.kept, method, made, method === "ip-adapter" ? "ip-adapter/" : undefined);
  const losses = await compareLosses(study, method, method, files);
  const drawn = await study.kept.part(`${method}/drawn`, pairResultSchema.shape.drawn, () => compareDrawn(study, method, files));
  const result: PairResult = { kind: "pairs", cost: costOf(made), ...losses, drawn, control: null };
  study.say(`${method}: with the right condition the loss is ${percent(result.advantage.value)} less than with a shuffled one`);
  study.finished(method, result);

  const still = `${method}/control-rate-0`;
  const optimizer = { ...own.body.optimizer, learning_rate: 0 };
  const unmoved = await trained(trainer, study.kept, still, { ...own, body: { ...own.body, steps: 20, optimizer } });
  const unmovedFiles = exportedFiles(study.kept, still, unmoved, method === "ip-adapter" ? "ip-adapter/" : undefined);
  const { advantage } = await compareLosses(study, method, still, unmovedFiles);
  study.say(`learning rate 0: ${percent(advantage.value)} less`);
  study.finished(method, { ...result, control: { advantage } });
}

function encoderFiles(): NamedFile[] {
  return ["config.json", "preprocessor_config.json", "model.safetensors"].map(path => ({
    path,
    bytes: readFileSync(new URL(path, encoderFolder)),
  }));
}

/** The pairs that are scored, with their own conditions or each with the next one's. */
async function testPairs(method: PairMethod, kind: "right" | "shuffled") {
  const pairs = await makePairs(method, counts.train, counts.test);
  return pairs.map((pair, i) => ({ ...pair, condition: pairs[kind === "right" ? i : (i + 1) % pairs.length]!.condition }));
}

/** Losses with right and with shuffled conditions, at the same noises. */
async function compareLosses(study: Study, method: PairMethod, part: string, files: readonly NamedFile[]) {
  const { products, kept } = study;
  const of = async (kind: "right" | "shuffled"): Promise<Evaluated["picture_losses"]> => {
    const { picture_losses } = await evaluated(products.server, kept, `${part}/${kind}`, {
      ...{ files, concepts: [{ token: method, class_prompt: null }], prompts: ["a cube"] },
      pictures: [...(await makePairs(method, 0, 1)), ...(await testPairs(method, kind))],
      scoring: { pictures: counts.test, prior_pictures: 0, steps: 2 },
    });
    return picture_losses;
  };
  const [right, shuffled] = [await of("right"), await of("shuffled")];
  const ratio = (over: (i: number) => number, under: (i: number) => number) =>
    bootstrap(right.length, 1, 1, draw => {
      const sum = (value: (i: number) => number) => draw.reduce((total, [i]) => total + value(i), 0);
      return 1 - sum(over) / sum(under);
    });
  return {
    right: ratio(
      i => right[i]!.adapted,
      i => right[i]!.base,
    ),
    shuffled: ratio(
      i => shuffled[i]!.adapted,
      i => shuffled[i]!.base,
    ),
    advantage: ratio(
      i => right[i]!.adapted,
      i => shuffled[i]!.adapted,
    ),
  };
}

const rowsOfGrid = ["condition", "base", "right", "shuffled", "true"] as const;

/** The same caption and seed by the base, with a picture's own condition, and with another's; a grid of them is kept. */
async function compareDrawn({ products: { server }, picture }: Study, method: PairMethod, files: readonly NamedFile[]) {
  const adapter = await server.upload(method, files, null);
  const shuffled = (await testPairs(method, "shuffled")).slice(0, counts.drawn);
  const distances = { base: [] as number[], right: [] as number[], shuffled: [] as number[] };
  const tiles: { input: Buffer; left: number; top: number }[] = [];
  for (const [i, pair] of (await testPairs(method, "right")).slice(0, counts.drawn).entries()) {
    const draw = (condition?: Uint8Array) => {
      const image = condition && `data:image/png;base64,${Buffer.from(condition).toString("base64")}`;
      const asked = { prompt: pair.caption, seed: i, steps: 20, width: worldSize, height: worldSize };
      return server.draw({ ...asked, ...(image && { adapters: [{ adapter, image }] }) });
    };
    const made = { base: await draw(), right: await draw(pair.condition), shuffled: await draw(shuffled[i]!.condition) };
    for (const kind of ["base", "right", "shuffled"] as const) distances[kind].push(await distance(made[kind], pair.png));
    const shown = { ...made, condition: pair.condition, true: pair.png };
    for (const [row, kind] of rowsOfGrid.entries())
      tiles.push({ input: Buffer.from(shown[kind]), left: i * worldSize, top: row * worldSize });
  }
  const canvas = { width: counts.drawn * worldSize, height: rowsOfGrid.length * worldSize, channels: 3, background: "#000" } as const;
  await picture(method, await sharp({ create: canvas }).composite(tiles).png().toBuffer());
  const differences = distances.shuffled.map((value, i) => value - distances.right[i]!);
  const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const difference = bootstrap(differences.length, 1, 1, draw => mean(draw.map(([i]) => differences[i]!)));
  return { base: mean(distances.base), right: mean(distances.right), shuffled: mean(distances.shuffled), difference };
}

/** Mean squared difference of two pictures, 0 .. 1. */
async function distance(a: Uint8Array, b: Uint8Array): Promise<number> {
  const [one, other] = await Promise.all([a, b].map(png => sharp(png).removeAlpha().toColourspace("srgb").raw().toBuffer()));
  if (!one || one.length !== other?.length) throw new Error(`pictures differ in size: ${one?.length} and ${other?.length} bytes`);
  return one.reduce((sum, value, i) => sum + ((value - other[i]!) / 255) ** 2, 0) / one.length;
}
