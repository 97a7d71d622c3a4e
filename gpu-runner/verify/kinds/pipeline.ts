/** Whole pictures: prompts, start noise and input pictures to latents and pixels. */
import { z } from "zod";
import { promptSyntaxes } from "../../../shared/picture.ts";
import type { DiffusionModel, TensorF32 } from "../../components.ts";
import { isGuided } from "../../pipeline/denoiser.ts";
import { toTensor } from "../../pipeline/input-picture.ts";
import type { ItemAdapters } from "../../pipeline/item-adapters.ts";
import { decode, resizeLatents } from "../../pipeline/latents.ts";
import { timeIdsOf } from "../../pipeline/micro-conditioning.ts";
import { type PassItem, type PassPlan, planPass, runPass, type Start } from "../../pipeline/pass.ts";
import { toBytes, toUnitPictures } from "../../pipeline/pixels.ts";
import { preparePictureModel } from "../../pipeline/prepare-model.ts";
import { resample } from "../../pipeline/resample.ts";
import { joinInversions } from "../../pipeline/resolve-adapters.ts";
import type { SourcePicture } from "../../pipeline/source.ts";
import { concat, split } from "../../pipeline/tensors.ts";
import { itemTexts } from "../../pipeline/texts.ts";
import { schedulerClasses, schedulerConfig, stableDiffusionConfig } from "../../schedulers/config.ts";
import { float32Input, type VerifyContext, type VerifyKind } from "../kind.ts";
import { unsupportedBase } from "../model-support.ts";
import { openCaseAdapters } from "./case-adapters.ts";
import { unsupportedScheduler } from "./scheduler.ts";
import { sourceOf, sourceSettingsSchema } from "./source-picture.ts";

const tasks = ["txt2img", "img2img", "inpaint", "edit"] as const;
const prompts = z.union([z.string(), z.array(z.string()).nonempty()]);
const size = z.tuple([z.int(), z.int()]);

/** Arguments and their defaults as in diffusers' pipelines. Strict: an argument that isn't served must not be ignored. */
const paramsSchema = z.strictObject({
  task: z.enum(tasks),
  family: z.string().optional(),
  scheduler: z.enum(schedulerClasses),
  schedulerConfig: z.record(z.string(), z.unknown()).optional(),
  steps: z.int().default(50),
  width: z.int(),
  height: z.int(),
  prompt: prompts,
  prompt2: prompts.nullish(),
  negativePrompt: prompts.nullish(),
  negativePrompt2: prompts.nullish(),
  guidanceScale: z.number().optional(),
  guidanceRescale: z.number().default(0),
  imageGuidanceScale: z.number().default(1.5),
  clipSkip: z.int().nullish(),
  strength: z.number().optional(),
  eta: z.number().default(0),
  originalSize: size.optional(),
  cropsCoordsTopLeft: size.default([0, 0]),
  targetSize: size.optional(),
  negativeOriginalSize: size.optional(),
  negativeCropsCoordsTopLeft: size.default([0, 0]),
  negativeTargetSize: size.optional(),
  aestheticScore: z.number().default(6),
  negativeAestheticScore: z.number().default(2.5),
  denoisingStart: z.number().optional(),
  denoisingEnd: z.number().optional(),
  /** Of `cleanLatents` or `image`: they are enlarged to the picture's size first. */
  enlargedFrom: size.optional(),
  guidanceStart: z.number().default(0),
  guidanceEnd: z.number().default(1),
  syntax: z.enum(promptSyntaxes).default("plain"),
  /** Blurring, cropping and filling of `image` and `mask`, which are in whole bytes then. */
  source: sourceSettingsSchema.optional(),
  /** Of adapters. */
  imageEncoder: z.string().optional(),
  conditioningScale: z.array(z.number()).default([]),
});
type Params = z.infer<typeof paramsSchema>;

export const pipelineKind: VerifyKind = {
  kind: "pipeline",
  supports(goldenCase, modelPath) {
    const { params } = goldenCase;
    if (!tasks.some(task => task === params.task)) return `task ${params.task}`;
    const unserved = unsupportedScheduler(params.scheduler) ?? unsupportedBase(modelPath);
    if (unserved !== null) return unserved;
    const unknown = Object.keys(params).find(name => !Object.hasOwn(paramsSchema.shape, name));
    return unknown === undefined ? null : `argument ${unknown}`;
  },

  async run(goldenCase, context) {
    const { params, inputs } = goldenCase;
    const parsed = paramsSchema.parse(params);
    const plan = await planOf(parsed, await context.model());
    const source = parsed.source ? await sourceOf(parsed.source, parsed, context, "mask" in inputs) : null;
    const { into, nets } = await openCaseAdapters(goldenCase, parsed, context);
    try {
      const items = itemsOf(parsed, plan, inputs, context, { ...into, inversions: joinInversions(into.words, plan) }, source);
      // Such cases hold what the Brownian motion of DPMSolverSDE gave, among the other draws.
      const latents = await runPass(plan, items, { intervalNoise: () => concat(items.map(({ draw }) => draw("other"))) });
      return {
        latents: { data: concat(latents), shape: [items.length, ...plan.shape.slice(1)] },
        image: await picturesOf(latents, plan, source),
      };
    } finally {
      for (const net of nets) await net.release();
    }
  },
};

/** [H, W, 3] or [B, H, W, 3] in 0..1; with source settings as they are finished, in whole bytes. */
async function picturesOf(latents: readonly Float32Array[], plan: PassPlan, source: SourcePicture | null): Promise<TensorF32> {
  const pictures: Float32Array[] = [];
  for (const item of latents) {
    const pixels = toUnitPictures(await decode(plan.pictureModel.model, item, plan.shape, false))[0]!;
    pictures.push(source ? Float32Array.from(await source.finish(toBytes(pixels)), byte => byte / 255) : pixels);
  }
  const shape = [plan.height, plan.width, 3];
  return { data: concat(pictures), shape: pictures.length === 1 ? shape : [pictures.length, ...shape] };
}

/** diffusers' pipelines of the first families correct what their schedulers were published with; SDXL's take it as it is. */
function pipelineConfig({ description }: DiffusionModel, given: Params["schedulerConfig"]): Readonly<Record<string, unknown>> {
  const config = given ?? description.schedulerConfig;
  return description.addedConditions ? config : stableDiffusionConfig(config);
}

async function planOf(params: Params, model: DiffusionModel): Promise<PassPlan> {
  const { task, scheduler, schedulerConfig: given, eta, steps, width, height, denoisingStart, denoisingEnd } = params;
  const defaultStrength = { txt2img: 1, img2img: model.description.addedConditions ? 0.3 : 0.8, inpaint: 1, edit: 1 }[task];
  const noiseSpan = {
    ...(denoisingStart !== undefined && { from: denoisingStart }),
    ...(denoisingEnd !== undefined && { to: denoisingEnd }),
  };
  return planPass(
    {
      pictureModel: await preparePictureModel(model),
      scheduler,
      schedulerConfig: schedulerConfig(scheduler, { ...pipelineConfig(model, given), eta }),
      steps,
      width,
      height,
      strength: params.strength ?? defaultStrength,
      tiled: false,
      noiseSpan,
    },
    task === "img2img" || task === "inpaint",
  );
}

function itemsOf(
  params: Params,
  plan: PassPlan,
  inputs: Readonly<Record<string, string>>,
  context: VerifyContext,
  adapters: ItemAdapters,
  source: SourcePicture | null,
): PassItem[] {
  const { prompt, task } = params;
  const count = typeof prompt === "string" ? 1 : prompt.length;
  const nth = (value: Params["prompt"] | null | undefined, i: number) => (typeof value === "string" ? value : (value?.[i] ?? null));
  const { pictureModel } = plan;
  const { addedConditions } = pictureModel.model.description;
  const guidance = {
    scale: params.guidanceScale ?? (addedConditions ? 5 : 7.5),
    rescale: params.guidanceRescale,
    start: params.guidanceStart,
    end: params.guidanceEnd,
    imageScale: task === "edit" ? params.imageGuidanceScale : null,
  };
  return Array.from({ length: count }, (_, i) => {
    const texts = {
      prompt: nth(prompt, i)!,
      // As Python's `or`.
      prompt2: nth(params.prompt2 || null, i),
      negativePrompt: nth(params.negativePrompt, i),
      negativePrompt2: nth(params.negativePrompt2 || null, i),
      syntax: params.syntax,
      ...(params.syntax === "plain" && { mostChunks: 1 }),
      clipSkip: params.clipSkip ?? 0,
    };
    const isContinued = params.denoisingStart !== undefined;
    const draws = drawsOf(isContinued, inputs, context, count, i);
    return {
      texts: itemTexts(pictureModel, texts, adapters, isGuided(pictureModel, guidance)),
      timeIds: timeIdsOf(pictureModel.model.description, microOf(params, addedConditions?.requiresAestheticsScore ?? false), params),
      guidance,
      adapters,
      start: source ? { kind: "image", pixels: source.pixels } : startOf(params, plan, inputs, context, { count, item: i }),
      mask: source?.mask ?? ("mask" in inputs ? float32Input(context, "mask").data : null),
      fillsWithNoise: params.source?.fill === "noise",
      draw: () => draws(),
    };
  });
}

function startOf(
  { denoisingStart, enlargedFrom }: Params,
  { shape, width, height }: PassPlan,
  inputs: Readonly<Record<string, string>>,
  context: VerifyContext,
  { count, item }: { count: number; item: number },
): Start {
  if (denoisingStart !== undefined) return { kind: "continued", latents: split(float32Input(context, "latents").data, count)[item]! };
  if ("image" in inputs) {
    const image = float32Input(context, "image");
    return { kind: "image", pixels: enlargedFrom ? enlarged(image, width, height) : planar(image) };
  }
  if (!enlargedFrom) return { kind: "noise" };
  const latents = split(float32Input(context, "cleanLatents").data, count)[item]!;
  return { kind: "latents", latents: resizeLatents(latents, enlargedFrom, [shape[2], shape[3]]) };
}

/** A picture in whole bytes / 255, as the second pass over enlarged pixels reads it. */
function enlarged({ data, shape }: TensorF32, newWidth: number, newHeight: number): TensorF32 {
  const [height, width] = shape as [number, number, number];
  return toTensor(resample({ data: new Uint8Array(toBytes(data).buffer), width, height }, 3, newWidth, newHeight));
}

/** In diffusers' order. Latents that an earlier pass left are no draw. */
function drawsOf(
  isContinued: boolean,
  inputs: Readonly<Record<string, string>>,
  context: VerifyContext,
  count: number,
  item: number,
): () => Float32Array {
  // One picture for several prompts is encoded once.
  const rowOf = ({ data, shape }: TensorF32) => (shape[0] === 1 ? data : split(data, count)[item]!);
  const single = ["vaeNoise", ...(isContinued ? [] : ["latents"]), "noise", "maskedVaeNoise"].filter(name => name in inputs);
  const draws = single.map(name => rowOf(float32Input(context, name)));
  if ("stepNoises" in inputs) {
    const { data, shape } = float32Input(context, "stepNoises");
    draws.push(...split(data, shape[0]!).map(draw => split(draw, count)[item]!));
  }
  let drawn = 0;
  return () => {
    const draw = draws[drawn++];
    if (!draw) throw new Error(`the pipeline draws noise more than the case's ${draws.length} times`);
    return draw;
  };
}

/**
 * diffusers takes the positive prompt's numbers for the negative one where it is not given both sizes of its own; where it starts from a
 * picture, its crop in any case, except for a refiner.
 */
function microOf(params: Params, isRefiner: boolean) {
  const { task, width, height, negativeOriginalSize, negativeTargetSize, cropsCoordsTopLeft, negativeCropsCoordsTopLeft } = params;
  const original = params.originalSize ?? [height, width];
  const target = params.targetSize ?? [height, width];
  const isOwn = task !== "txt2img" || (negativeOriginalSize !== undefined && negativeTargetSize !== undefined);
  const hasOwnCrop = task === "txt2img" ? isOwn : isRefiner;
  return {
    original_size: original,
    crops_coords_top_left: cropsCoordsTopLeft,
    target_size: target,
    negative_original_size: (isOwn ? negativeOriginalSize : undefined) ?? original,
    negative_crops_coords_top_left: hasOwnCrop ? negativeCropsCoordsTopLeft : cropsCoordsTopLeft,
    negative_target_size: (isOwn ? negativeTargetSize : undefined) ?? target,
    aesthetic_score: params.aestheticScore,
    negative_aesthetic_score: params.negativeAestheticScore,
  } satisfies Parameters<typeof timeIdsOf>[1];
}

/** [H, W, 3] in 0..1 to [1, 3, H, W] in -1..1. */
function planar({ data, shape }: TensorF32): TensorF32 {
  const [height, width, channels] = shape as [number, number, number];
  const plane = height * width;
  const result = Float32Array.from(data, (_, i) => 2 * data[(i % plane) * channels + Math.floor(i / plane)]! - 1);
  return { data: result, shape: [1, channels, height, width] };
}
