/** Whether ControlNet and IP-Adapter trainings learn what their condition means: held-out pictures drawn from right and from shuffled ones. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import { bootstrap } from "../gpu-runner/train/scores.ts";
import type { NamedFile } from "./client.ts";
import type { StudyPicture } from "./concepts.ts";
import type { Kept } from "./kept.ts";
import { type PairMethod, pairPlans } from "./plans.ts";
import type { Products } from "./products.ts";
import { type PairResult, pairResultSchema, type Trained } from "./results.ts";
import { exported, trained } from "./training.ts";
import { worldPicture, worldSize } from "./world/world.ts";

const counts = { train: 256, test: 16 };
/** Seeds of the world from which its pairs are taken, and of other views of the same scenes. */
const [firstSeed, firstStaging] = [1_000_000, 6_000_000];
/** Of the encoder by which IP-Adapters see. */
const encoderFolder = "models/pocket-clip";

async function toPng(plane: Uint8Array, channels: 1 | 3): Promise<Uint8Array> {
  return sharp(plane, { raw: { width: worldSize, height: worldSize, channels } })
    .png()
    .toBuffer();
}

/** The world's captions say all that a picture shows: beside them an IP-Adapter's reference would have nothing to add. */
function captionOf(method: PairMethod, { caption }: { caption: string }): string {
  return method === "ip-adapter" ? "a picture" : caption;
}

async function makePair(method: PairMethod, index: number): Promise<StudyPicture> {
  const picture = worldPicture(firstSeed + index);
  const png = await toPng(picture.rgb, 3);
  const conditions = {
    "controlnet-edges": () => toPng(picture.edges, 1),
    "controlnet-depth": () => toPng(picture.depth, 1),
    // The same scene from elsewhere: what is to be learned is the things in it, not their places.
    "ip-adapter": () => toPng(worldPicture(firstSeed + index, { staging: firstStaging + index }).rgb, 3),
  } satisfies Record<PairMethod, () => Promise<Uint8Array>>;
  return {
    ...{ file: `${index}.png`, png, caption: captionOf(method, picture), concept: 0 },
    split: index < counts.train ? "train" : "test",
    condition: await conditions[method](),
  };
}

export async function studyPairs(method: PairMethod, products: Products, kept: Kept, say: (line: string) => void): Promise<void> {
  const makePairs = async () => {
    const pairs: StudyPicture[] = [];
    for (let i = 0; i < counts.train + counts.test; i++) pairs.push(await makePair(method, i));
    return pairs;
  };
  const { budget, ...plan } = pairPlans[method];
  if (method === "ip-adapter") await products.trainer.upload("pocket-clip", encoderFiles(), null);
  const result = await trained(products.trainer, kept, method, {
    ...{ pictures: makePairs, tokens: [method], classPrompt: null },
    body: { ...plan, budget, seed: 1 },
  });
  const compared = await kept.part(`${method}/compared`, pairResultSchema, async () => {
    const adapter = await products.server.upload(
      method,
      method === "ip-adapter" ? folderFiles(kept, method, result) : [exported(kept, method, result)],
      null,
    );
    const tests: StudyPicture[] = [];
    for (let i = 0; i < counts.test; i++) tests.push(await makePair(method, counts.train + i));
    return compare(products, kept, method, adapter, tests);
  });
  const { value, low, high } = compared.advantage;
  say(`${method}: shuffled conditions are ${value.toFixed(4)} (${low.toFixed(4)} .. ${high.toFixed(4)}) further from the true picture`);
}

function encoderFiles(): NamedFile[] {
  return ["config.json", "preprocessor_config.json", "model.safetensors"].map(path => ({
    path,
    bytes: readFileSync(join(encoderFolder, path)),
  }));
}

/** An IP-Adapter with the encoder beside it. */
function folderFiles(kept: Kept, part: string, { files }: Trained): NamedFile[] {
  return files
    .filter(path => path.startsWith("ip-adapter/"))
    .map(path => {
      const bytes = kept.read(`${part}/${path}`);
      if (!bytes) throw new Error(`${part}: expected the file ${path}, got none`);
      return { path, bytes };
    });
}

/** The same caption and seed, with a picture's own condition and with the next one's. */
async function compare(
  { server }: Products,
  kept: Kept,
  method: PairMethod,
  adapter: string,
  tests: readonly StudyPicture[],
): Promise<PairResult> {
  const distances = { right: [] as number[], shuffled: [] as number[] };
  for (const [i, test] of tests.entries()) {
    const sources = { right: test, shuffled: tests[(i + 1) % tests.length]! };
    for (const kind of ["right", "shuffled"] as const) {
      const condition = sources[kind].condition ?? sources[kind].png;
      const image = `data:image/png;base64,${Buffer.from(condition).toString("base64")}`;
      const drawn = await server.draw({
        ...{ prompt: test.caption, seed: i, steps: 12, width: worldSize, height: worldSize },
        adapters: [{ adapter, image }],
      });
      kept.write(`${method}/${kind}-${i}.png`, drawn);
      distances[kind].push(await distance(drawn, test.png));
    }
  }
  const differences = distances.shuffled.map((value, i) => value - distances.right[i]!);
  const advantage = bootstrap(differences.length, 1, 1, draw => draw.reduce((sum, [i]) => sum + differences[i]!, 0) / draw.length);
  return { ...distances, advantage };
}

/** Mean squared difference of two pictures, 0 .. 1. */
async function distance(a: Uint8Array, b: Uint8Array): Promise<number> {
  const [one, other] = await Promise.all([a, b].map(png => sharp(png).removeAlpha().raw().toBuffer()));
  if (!one || one.length !== other?.length) throw new Error(`pictures differ in size: ${one?.length} and ${other?.length} bytes`);
  return one.reduce((sum, value, i) => sum + ((value - other[i]!) / 255) ** 2, 0) / one.length;
}
