import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { AdapterStore } from "../../../gpu-runner/adapters/store.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import type { PictureContext } from "../../../gpu-runner/pipeline/context.ts";
import { preparePictureModel } from "../../../gpu-runner/pipeline/prepare-model.ts";
import { runPicture, runPictures } from "../../../gpu-runner/pipeline/run-picture.ts";
import { writeSafetensors } from "../../../gpu-runner/weights/safetensors-write.ts";
import type { AdapterUse, PictureRequest } from "../../../shared/picture.ts";
import { request } from "./fixtures.ts";

const goldens = join(import.meta.dirname, "../../goldens/adapters");
const span = { weight: 0.8, start: 0, end: 1 };
const picture = "a".repeat(64);
const half = "b".repeat(64);
const face = "c".repeat(64);
const facePlus = "d".repeat(64);

/** The path stands in the hash's place: nothing here looks at it. */
const uses = {
  lora: { kind: "lora", adapter: "adapters/lora/combined.safetensors", ...span, text_encoder_weight: 0.8, dora: null },
  lycoris: { kind: "lora", adapter: "adapters/lora/loha.safetensors", ...span, text_encoder_weight: 0, dora: null },
  inversion: { kind: "textual-inversion", adapter: "adapters/ti/ti-diffusers-multi.safetensors", token: "<cat-toy>" },
  hypernetwork: { kind: "hypernetwork", adapter: "adapters/hypernetwork/hyper-pickle.pt", ...span },
  imagePrompt: {
    kind: "ip-adapter",
    adapter: "models/ip-adapter/ip-adapter-base.safetensors",
    ...span,
    images: [{ image: picture, weight: 1 }],
    embedding: null,
    shortcut: false,
    mask: null,
  },
  controlNet: {
    kind: "controlnet",
    adapter: "models/controlnet-folder",
    ...span,
    image: picture,
    preprocess: "canny",
    guess_mode: false,
    global_pool: false,
    control_mode: null,
  },
  t2iAdapter: { kind: "t2i-adapter", adapter: "models/t2i-adapter", ...span, image: picture, preprocess: "none" },
} as const satisfies Record<string, AdapterUse>;

let scratch: string;
let context: PictureContext;
let model: string;
let release: () => Promise<void>;

beforeAll(async () => {
  scratch = mkdtempSync(join(tmpdir(), "atelier-adapters-"));
  const gradient = (pixel: (x: number) => number) => Uint8Array.from({ length: 64 * 48 * 3 }, (_, i) => pixel(Math.floor(i / 3) % 64));
  const files: Record<string, string> = { [picture]: join(scratch, "picture.png"), [half]: join(scratch, "half.png") };
  files[face] = join(scratch, "face.safetensors");
  writeSafetensors(files[face], [{ name: "face", dtype: "F32", shape: [8], data: () => [new Uint8Array(32)] }]);
  files[facePlus] = join(scratch, "face-plus.safetensors");
  const values = new Uint8Array(Float32Array.from({ length: 16 }, (_, i) => Math.sin(i)).buffer);
  writeSafetensors(files[facePlus], [{ name: "face", dtype: "F32", shape: [16], data: () => [values] }]);
  const raw = { raw: { width: 64, height: 48, channels: 3 as const } };
  await sharp(
    gradient(x => (x > 20 && x < 40 ? 220 : 3 * x)),
    raw,
  ).toFile(files[picture]!);
  await sharp(
    gradient(x => (x < 32 ? 255 : 0)),
    raw,
  ).toFile(files[half]!);
  const loaded = await loadDiffusionModel(join(goldens, "models/sd15"), { provider: "cpu", cacheDir: scratch });
  const pictureModel = await preparePictureModel(loaded);
  const adapters = new AdapterStore({ provider: "cpu", cacheDir: scratch, budget: 0 });
  model = loaded.description.hash;
  context = { inputs: { file: sha256 => files[sha256]!, adapter: path => join(goldens, path) }, adapters, model: async () => pictureModel };
  release = async () => {
    await adapters.close();
    await loaded.release();
  };
});
afterAll(async () => {
  await release();
  rmSync(scratch, { recursive: true, force: true });
});

const asked = (adapters: readonly AdapterUse[], changes: Partial<PictureRequest> = {}): PictureRequest => ({
  ...request,
  model,
  sampler: "ddim",
  sampler_options: {},
  guidance_rescale: 0,
  prompt: "a <cat-toy> by the sea",
  ...changes,
  adapters: [...adapters],
});

async function pixels(adapters: readonly AdapterUse[], changes: Partial<PictureRequest> = {}): Promise<Buffer> {
  const { bytes } = await runPicture(context, asked(adapters, changes));
  return sharp(Buffer.from(bytes)).raw().toBuffer();
}
const distance = (a: Buffer, b: Buffer) => a.reduce((sum, value, i) => sum + Math.abs(value - b[i]!), 0);

describe.each(Object.entries(uses))("%s", (_, use) => {
  test("changes the picture", async () => {
    expect(distance(await pixels([use]), await pixels([]))).toBeGreaterThan(0);
  });

  if ("weight" in use) {
    test("at weight 0, or for no step, changes nothing", async () => {
      const plain = await pixels([]);
      const without = use.kind === "lora" ? { ...use, text_encoder_weight: 0 } : use;
      expect(distance(await pixels([{ ...without, weight: 0 } as AdapterUse]), plain)).toBeLessThanOrEqual(plain.length / 100);
      expect(await pixels([{ ...without, start: 1, end: 1 } as AdapterUse])).toEqual(plain);
    });
  }
});

test("all kinds work together", async () => {
  const together = await pixels(Object.values(uses));
  for (const use of Object.values(uses)) expect(together).not.toEqual(await pixels([use]));
});

test("LoRAs of each item of a batch are its own", async () => {
  const requests = [asked([uses.lora]), asked([]), asked([uses.lycoris], { seed: 3 })];
  const together = await runPictures(context, requests, [{}, {}, {}]);
  for (const [i, { bytes }] of together.entries()) {
    const alone = await runPicture(context, requests[i]!);
    const [a, b] = await Promise.all([bytes, alone.bytes].map(file => sharp(Buffer.from(file)).raw().toBuffer()));
    expect(Math.max(...a!.map((value, k) => Math.abs(value - b![k]!)))).toBeLessThanOrEqual(1);
  }
});

test("an image prompt's mask keeps it to a part, guess mode and spans differ", async () => {
  const pictures = await Promise.all([
    pixels([uses.imagePrompt]),
    pixels([{ ...uses.imagePrompt, mask: half }]),
    pixels([uses.controlNet]),
    pixels([{ ...uses.controlNet, guess_mode: true }]),
    pixels([{ ...uses.controlNet, end: 0.5 }]),
  ]);
  expect(new Set(pictures.map(data => data.toString("base64"))).size).toBe(pictures.length);
});

test("FaceID-plus is read as its second version where the request says so", async () => {
  const use = { ...uses.imagePrompt, adapter: "../image-adapters/models/ip-faceid-plus.safetensors", embedding: facePlus };
  const loaded = await loadDiffusionModel(join(goldens, "../base/models/sd15"), { provider: "cpu", cacheDir: scratch });
  const other = await preparePictureModel(loaded);
  const draw = (shortcut: boolean) =>
    runPicture({ ...context, model: async () => other }, asked([{ ...use, shortcut }], { model: loaded.description.hash }));
  const files = [(await draw(false)).bytes, (await draw(true)).bytes];
  const [first, second] = await Promise.all(files.map(file => sharp(Buffer.from(file)).raw().toBuffer()));
  expect(distance(first!, second!)).toBeGreaterThan(0);
  await loaded.release();
});

test("a second pass and a crop have maps of their own size", async () => {
  const upscale = { scale: 1.5, mode: "pixel" as const, strength: 0.5, steps: 2 };
  expect((await pixels([uses.controlNet, uses.t2iAdapter], { upscale })).length).toBe(96 * 72 * 3);
  const source = { image: picture, strength: 1 };
  const mask = { image: half, blur: 0, padding_crop: 0, fill: "original" as const };
  expect(await pixels([uses.controlNet], { source, mask })).not.toEqual(await pixels([], { source, mask }));
});

test.each([
  {
    use: { ...uses.controlNet, control_mode: 2 },
    message: "adapters[0].control_mode: expected none, for a ControlNet of one control, got 2",
  },
  { use: { ...uses.imagePrompt, images: [] }, message: "adapters[0]: expected a picture or an embedding, got neither" },
  { use: { ...uses.imagePrompt, embedding: picture }, message: /^adapters\[0\]\.embedding: header length: expected 2 to / },
  { use: { ...uses.imagePrompt, images: [], embedding: face }, message: "adapters[0]: embedding: expected pictures alone" },
  {
    use: { ...uses.imagePrompt, shortcut: true },
    message: "adapters[0].shortcut: expected false for an adapter that is no FaceID-plus, got true",
  },
  { use: { ...uses.lora, adapter: "adapters/lora/sdxl-kohya.safetensors" }, message: /^adapters\[0\]: / },
])("refuses $message", async ({ use, message }) => {
  const refused = runPicture(context, asked([use]));
  await expect(refused).rejects.toThrow(message);
  await expect(refused).rejects.toBeInstanceOf(RangeError);
});
