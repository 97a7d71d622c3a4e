import { expect, test } from "vitest";
import { batchKey } from "../../shared/batch.ts";
import { ENGINE_VERSION } from "../../shared/engine.ts";
import { type AdapterUse, type PictureRequest, pictureRequestSchema, plainPicture } from "../../shared/picture.ts";

const sha = (digit: string) => digit.repeat(64);
const hash = (digit: string) => `sha256:${sha(digit)}`;
const span = { weight: 1, start: 0, end: 1 };
const lora = (digit: string, changes = {}): AdapterUse => ({
  ...{ kind: "lora", adapter: hash(digit), ...span, text_encoder_weight: 1, dora: null },
  ...changes,
});
const inversion: AdapterUse = { kind: "textual-inversion", adapter: hash("3"), token: "<cat>" };
const hypernetwork = { kind: "hypernetwork", adapter: hash("4"), ...span } as const satisfies AdapterUse;
const ipAdapter = {
  ...{ kind: "ip-adapter", adapter: hash("5"), ...span },
  images: [{ image: sha("6"), weight: 1 }],
  embedding: null,
  shortcut: false,
  mask: null,
} as const satisfies AdapterUse;
const control = { ...span, image: sha("7"), preprocess: "none" } as const;
const controlnet = {
  ...{ kind: "controlnet", adapter: hash("8"), ...control },
  ...{ guess_mode: false, global_pool: false, control_mode: null },
} as const satisfies AdapterUse;
const t2i = { kind: "t2i-adapter", adapter: hash("9"), ...control } as const satisfies AdapterUse;

const base: PictureRequest = {
  ...plainPicture,
  engine_version: ENGINE_VERSION,
  model: hash("0"),
  prompt: "a red circle",
  width: 512,
  height: 512,
  steps: 20,
  guidance_scale: 7,
  seed: 1,
  sampler: "ddim",
};
const source = { image: sha("a"), strength: 0.5 };
const mask = { image: sha("b"), blur: 4, padding_crop: null, fill: "original" } as const;
const sized = { original_size: [512, 512], crops_coords_top_left: [0, 0], target_size: [512, 512] } satisfies Record<
  string,
  [number, number]
>;
const micro_conditioning: PictureRequest["micro_conditioning"] = {
  ...sized,
  ...{ negative_original_size: [512, 512], negative_crops_coords_top_left: [0, 0], negative_target_size: [512, 512] },
  ...{ aesthetic_score: 6, negative_aesthetic_score: 2.5 },
};

type Changes = Partial<PictureRequest>;
/** Every field of a request: changes that a batch's items may differ by, and changes that part them. */
const cases = {
  engine_version: { together: [], apart: [] },
  model: { together: [], apart: [{ model: hash("f") }] },
  prompt: { together: [{ prompt: "other" }], apart: [] },
  prompt_2: { together: [{ prompt_2: "other" }], apart: [] },
  negative_prompt: { together: [{ negative_prompt: null }, { negative_prompt: "other" }], apart: [] },
  negative_prompt_2: { together: [{ negative_prompt_2: "other" }], apart: [] },
  prompt_syntax: { together: [{ prompt_syntax: "a1111" }], apart: [] },
  clip_skip: { together: [{ clip_skip: 1 }], apart: [] },
  width: { together: [], apart: [{ width: 256 }] },
  height: { together: [], apart: [{ height: 256 }] },
  steps: { together: [], apart: [{ steps: 21 }] },
  guidance_scale: { together: [{ guidance_scale: 1.5 }], apart: [{ guidance_scale: 1 }] },
  guidance_rescale: { together: [{ guidance_rescale: 0.7 }], apart: [] },
  guidance_start: { together: [], apart: [{ guidance_start: 0.1 }] },
  guidance_end: { together: [], apart: [{ guidance_end: 0.9 }] },
  seed: { together: [{ seed: 2 }], apart: [] },
  noise_source: { together: [{ noise_source: "mt19937" }], apart: [] },
  variation: { together: [{ variation: { seed: 2, strength: 0.1 } }], apart: [] },
  sampler: { together: [], apart: [{ sampler: "euler" }] },
  sampler_options: { together: [], apart: [{ sampler_options: { eta: 1 } }] },
  source: {
    together: [{ source: { ...source, image: sha("c") } }],
    apart: [{ source: null }, { source: { ...source, strength: 0.6 } }],
  },
  mask: {
    together: [{ mask: { ...mask, image: sha("c"), blur: 0, fill: "noise" } }],
    apart: [{ mask: null }, { mask: { ...mask, padding_crop: 32 } }],
  },
  outpaint: { together: [], apart: [{ outpaint: { left: 64, right: 0, top: 0, bottom: 0 } }] },
  image_guidance_scale: { together: [{ image_guidance_scale: 2 }], apart: [{ image_guidance_scale: null }, { image_guidance_scale: 0.5 }] },
  upscale: { together: [], apart: [{ upscale: { scale: 2, mode: "latent", strength: 0.5, steps: 10 } }] },
  refiner: { together: [], apart: [{ refiner: { model: hash("e"), switch_at: 0.8 } }] },
  micro_conditioning: { together: [{ micro_conditioning }], apart: [] },
  tiled_vae: { together: [], apart: [{ tiled_vae: true }] },
  adapters: {
    together: [
      { adapters: [lora("1"), lora("2", { weight: -1, start: 0.5 }), hypernetwork, ipAdapter, controlnet, t2i] },
      { adapters: [inversion, hypernetwork, ipAdapter, controlnet, t2i] },
      {
        adapters: [
          hypernetwork,
          { ...ipAdapter, weight: 0.5, images: [{ image: sha("c"), weight: 2 }] },
          { ...controlnet, weight: 0.5, image: sha("c"), preprocess: "canny" },
          { ...t2i, weight: 0.5, image: sha("c"), preprocess: "scribble" },
        ],
      },
    ],
    apart: [
      { adapters: [] },
      { adapters: [{ ...hypernetwork, weight: 0.5 }, ipAdapter, controlnet, t2i] },
      { adapters: [hypernetwork, { ...ipAdapter, adapter: hash("c") }, controlnet, t2i] },
      { adapters: [hypernetwork, { ...ipAdapter, images: [...ipAdapter.images, ...ipAdapter.images] }, controlnet, t2i] },
      { adapters: [hypernetwork, { ...ipAdapter, mask: sha("c") }, controlnet, t2i] },
      { adapters: [hypernetwork, ipAdapter, { ...controlnet, end: 0.5 }, t2i] },
      { adapters: [hypernetwork, ipAdapter, { ...controlnet, guess_mode: true }, t2i] },
      { adapters: [hypernetwork, ipAdapter, { ...controlnet, control_mode: 1 }, t2i] },
      { adapters: [hypernetwork, ipAdapter, controlnet, { ...t2i, start: 0.5 }] },
      { adapters: [hypernetwork, ipAdapter, t2i, controlnet] },
    ],
  },
  format: { together: [{ format: "webp" }], apart: [] },
} as const satisfies Record<keyof PictureRequest, { together: Changes[]; apart: Changes[] }>;

const full: PictureRequest = {
  ...base,
  source,
  mask,
  image_guidance_scale: 1.5,
  adapters: [hypernetwork, ipAdapter, controlnet, t2i],
};

test.each(Object.entries(cases))("%s", async (_, { together, apart }) => {
  const key = await batchKey(full);
  expect(key).toMatch(/^[0-9a-f]{64}$/);
  for (const changes of together) expect(await batchKey(pictureRequestSchema.parse({ ...full, ...changes }))).toBe(key);
  const keys = await Promise.all(apart.map(changes => batchKey(pictureRequestSchema.parse({ ...full, ...changes }))));
  expect(new Set([key, ...keys]).size).toBe(1 + apart.length);
});

test("a picture whose sampler chooses its own steps is computed alone", async () => {
  const adaptive = { ...base, sampler: "dpm_adaptive" } as const;
  expect(await batchKey(adaptive)).toBe(await batchKey({ ...adaptive }));
  expect(await batchKey(adaptive)).not.toBe(await batchKey({ ...adaptive, seed: 2 }));
});
