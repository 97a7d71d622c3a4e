/** Validated picture requests and loaded models to picture files: one engine for every task, by composition of passes. */
import { sha256Hex } from "../../shared/canonical.ts";
import { mediaTypes, type PictureRequest } from "../../shared/picture.ts";
import { samplerClasses, samplerConfig } from "../schedulers/config.ts";
import { checkRefiner, checkRequest } from "./check-request.ts";
import type { Picture, PictureContext, PictureModel, PictureRun } from "./context.ts";
import { isGuided } from "./denoiser.ts";
import { encodePicture } from "./encode-picture.ts";
import { type RgbPicture, toTensor } from "./input-picture.ts";
import { noAdapters } from "./item-adapters.ts";
import { itemNoise } from "./item-noise.ts";
import { decode, resizeLatents } from "./latents.ts";
import { timeIdsOf } from "./micro-conditioning.ts";
import { type PassItem, type PassPlan, type PassSettings, planPass, runPass, type Start } from "./pass.ts";
import { toBytes, toUnitPictures } from "./pixels.ts";
import { resample } from "./resample.ts";
import { resolveAdapters } from "./resolve-adapters.ts";
import { batchProgress } from "./run-progress.ts";
import { prepareSource, type SourcePicture } from "./source.ts";
import { itemTexts } from "./texts.ts";

/** @throws the reason of `signal`; RangeError for settings or inputs that cannot be served; other errors where computing fails */
export async function runPicture(
  context: PictureContext,
  request: PictureRequest,
  run: PictureRun = {},
  signal?: AbortSignal,
): Promise<Picture> {
  const [picture] = await runPictures(context, [request], [run], signal);
  return picture!;
}

/**
 * A batch of requests of one batch key (`shared/batch.ts`), one result each. What is in the batch decides nothing about an item's noise.
 * @param runs one per request, in their order
 */
export async function runPictures(
  context: PictureContext,
  requests: readonly PictureRequest[],
  runs: readonly PictureRun[],
  signal?: AbortSignal,
): Promise<Picture[]> {
  const [first] = requests;
  const base = await context.model(first!.model);
  for (const request of requests) checkRequest(request, base.model.description);
  const items: Item[] = [];
  for (const request of requests) {
    items.push({ request, source: await prepareSource(request, context.inputs) });
  }
  const passes = await planPasses(context, base, first!);
  const onStep = batchProgress(
    runs,
    passes.map(({ plan }) => plan),
  );
  let starts: Start[] = items.map(({ source }) => (source ? { kind: "image", pixels: source.pixels } : { kind: "noise" }));
  let latents: Float32Array[] = [];
  for (const [i, pass] of passes.entries()) {
    if (i > 0) starts = await continued(passes[i - 1]!, pass, latents, first!.upscale?.mode ?? "latent");
    latents = await runPass(pass.plan, await passItems(context, pass, items, starts), { onStep: onStep(i), ...(signal && { signal }) });
  }
  return finish(base, passes.at(-1)!, items, latents);
}

interface Item {
  request: PictureRequest;
  source: SourcePicture | null;
}

interface Pass {
  plan: PassPlan;
  role: "first" | "refine" | "upscale";
}

/** The passes of a request, planned before the first is run: settings that cannot be served fail at once. */
async function planPasses(context: PictureContext, base: PictureModel, request: PictureRequest): Promise<Pass[]> {
  const { width, height, steps, refiner, upscale, source } = request;
  const isEdit = request.image_guidance_scale !== null;
  const first = passSettings(base, request, { width, height, steps, strength: source && !isEdit ? source.strength : 1 });
  const passes: Pass[] = [];
  if (refiner) {
    const model = await context.model(refiner.model);
    checkRefiner(base.model.description, model.model.description);
    const settings = passSettings(model, request, { width, height, steps, strength: 1 });
    const plan = planPass({ ...first, noiseSpan: { to: refiner.switch_at } }, source !== null && !isEdit);
    const rest = planPass({ ...settings, noiseSpan: { from: refiner.switch_at } }, false);
    // Of a picture that is changed a little, the refiner may do all there is to do.
    passes.push({ role: "first", plan }, { role: "refine", plan: { ...rest, begin: Math.max(rest.begin, plan.begin) } });
  } else {
    passes.push({ role: "first", plan: planPass(first, source !== null && !isEdit) });
  }
  if (upscale) {
    const multiple = base.model.description.vaeScaleFactor;
    const enlarged = (size: number) => Math.max(Math.round((size * upscale.scale) / multiple), 1) * multiple;
    const settings = passSettings(base, request, {
      width: enlarged(width),
      height: enlarged(height),
      steps: upscale.steps,
      strength: upscale.strength,
      earlierSteps: steps,
    });
    passes.push({ role: "upscale", plan: planPass(settings, true) });
  }
  return passes;
}

function passSettings(
  pictureModel: PictureModel,
  { sampler, sampler_options, tiled_vae }: PictureRequest,
  own: Pick<PassSettings, "width" | "height" | "steps" | "strength" | "earlierSteps">,
): PassSettings {
  const { description } = pictureModel.model;
  return {
    pictureModel,
    scheduler: samplerClasses[sampler],
    schedulerConfig: samplerConfig(sampler, sampler_options, description.schedulerConfig, description.family),
    tiled: tiled_vae,
    ...own,
  };
}

async function passItems(
  context: PictureContext,
  { plan, role }: Pass,
  items: readonly Item[],
  starts: readonly Start[],
): Promise<PassItem[]> {
  const { pictureModel, width, height } = plan;
  const { description } = pictureModel.model;
  const result: PassItem[] = [];
  for (const [i, { request, source }] of items.entries()) {
    const guidance = {
      scale: request.guidance_scale,
      rescale: request.guidance_rescale,
      start: request.guidance_start,
      end: request.guidance_end,
      imageScale: role === "first" ? request.image_guidance_scale : null,
    };
    const region = role === "first" ? (source?.region ?? null) : null;
    // Adapters belong to the base: a refiner has other layers.
    const adapters = role === "refine" ? noAdapters : await resolveAdapters(context, plan, request, region);
    result.push({
      texts: itemTexts(pictureModel, textsOf(request), adapters, isGuided(pictureModel, guidance)),
      timeIds: timeIdsOf(description, request.micro_conditioning, { width, height }),
      guidance,
      adapters,
      start: starts[i]!,
      mask: role === "upscale" ? null : (source?.mask ?? null),
      fillsWithNoise: request.mask?.fill === "noise",
      draw: itemNoise(request, plan.shape),
    });
  }
  return result;
}

function textsOf({ prompt, prompt_2, negative_prompt, negative_prompt_2, prompt_syntax, clip_skip }: PictureRequest) {
  return {
    prompt,
    prompt2: prompt_2,
    negativePrompt: negative_prompt,
    negativePrompt2: negative_prompt_2,
    syntax: prompt_syntax,
    clipSkip: clip_skip,
  };
}

/** What a pass makes of the latents that the one before it left. */
async function continued(before: Pass, { role, plan }: Pass, latents: readonly Float32Array[], mode: "latent" | "pixel"): Promise<Start[]> {
  if (role === "refine") return latents.map(data => ({ kind: "continued", latents: data }));
  const size = ({ shape }: PassPlan): [number, number] => [shape[2], shape[3]];
  if (mode === "latent") return latents.map(data => ({ kind: "latents", latents: resizeLatents(data, size(before.plan), size(plan)) }));
  const starts: Start[] = [];
  for (const data of latents) {
    const picture = await decoded(before.plan, plan.pictureModel, data);
    starts.push({ kind: "image", pixels: toTensor(resample(picture, 3, plan.width, plan.height)) });
  }
  return starts;
}

async function decoded({ shape, tiled, width, height }: PassPlan, { model }: PictureModel, latents: Float32Array): Promise<RgbPicture> {
  requireFinite(latents, "latents");
  const image = await decode(model, latents, shape, tiled);
  requireFinite(image.data, "pixels");
  return { data: new Uint8Array(toBytes(toUnitPictures(image)[0]!).buffer), width, height };
}

async function finish(base: PictureModel, { plan }: Pass, items: readonly Item[], latents: readonly Float32Array[]): Promise<Picture[]> {
  const pictures: Picture[] = [];
  for (const [i, { request, source }] of items.entries()) {
    const { data, width, height } = await decoded(plan, base, latents[i]!);
    const pixels = new Uint8ClampedArray(data.buffer as ArrayBuffer);
    const bytes = await encodePicture(source ? await source.finish(pixels) : pixels, request, { width, height });
    pictures.push({ bytes, mediaType: mediaTypes[request.format], width, height, sha256: await sha256Hex(bytes) });
  }
  return pictures;
}

/** What diverged would be written as black, and kept in the cache as a success. */
function requireFinite(values: Float32Array, name: string): void {
  if (!values.every(Number.isFinite))
    throw new RangeError(`${name}: expected finite numbers, got others: these settings diverge on this model`);
}
