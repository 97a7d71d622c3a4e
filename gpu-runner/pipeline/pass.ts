/** One pass of diffusion over a batch: from noise, from pictures, or from what an earlier pass left. */
import type { TensorF32 } from "../components.ts";
import type { SchedulerClass, SchedulerConfig } from "../schedulers/config.ts";
import { samplers } from "../schedulers/index.ts";
import { beginOfStrength, type IntervalNoise, initialLatents, type Sampler, type StepReport } from "../schedulers/sampler.ts";
import type { Schedule } from "../schedulers/schedule.ts";
import type { PictureModel } from "./context.ts";
import { type CallRange, type DenoisedItem, denoiser } from "./denoiser.ts";
import { encodeMean, encodeSampled, latentMask, latentShape } from "./latents.ts";
import { concat, split } from "./tensors.ts";

/** What a pass starts from. */
export type Start =
  | { kind: "noise" }
  /** Pixels in -1..1, [1, 3, H, W]. */
  | { kind: "image"; pixels: TensorF32 }
  /** Clean latents on the sampler's scale, such as enlarged ones. */
  | { kind: "latents"; latents: Float32Array }
  /** Latents at the noise level at which the pass begins. */
  | { kind: "continued"; latents: Float32Array };

export interface PassItem extends Omit<DenoisedItem, "extraChannels"> {
  start: Start;
  /** [H, W], from 0.5 on repainted; null: the whole picture. */
  mask: Float32Array | null;
  /** Whether the masked area starts from noise alone instead of what the picture has there. */
  fillsWithNoise: boolean;
  /** Unit Gaussian noise of one item's latents; diffusers' order of draws. `start`: the noise that a run starts from. */
  draw: (purpose: "start" | "other") => Float32Array;
}

/** What all items of a pass have in common. */
export interface PassSettings {
  pictureModel: PictureModel;
  scheduler: SchedulerClass;
  schedulerConfig: SchedulerConfig;
  steps: number;
  width: number;
  height: number;
  /** How far a pass that starts from a picture or latents changes it. */
  strength: number;
  tiled: boolean;
  /** Shares of the noise levels between which the pass works, for a hand-over between models. Absent: all. */
  noiseSpan?: { from?: number; to?: number };
  earlierSteps?: number;
}

export interface PassPlan extends PassSettings {
  sampler: Sampler;
  schedule: Schedule;
  begin: number;
  end: number;
  shape: [1, number, number, number];
}

export interface PassRun {
  onStep?: (report: StepReport) => void | Promise<void>;
  signal?: AbortSignal;
  /** In the place of the Brownian motion that samplers draw themselves; for reference cases. */
  intervalNoise?: IntervalNoise;
}

/** @throws RangeError for settings that leave no step to run */
export function planPass(settings: PassSettings, startsFromPicture: boolean): PassPlan {
  const { pictureModel, scheduler, schedulerConfig, steps, width, height, strength, noiseSpan } = settings;
  const shape = latentShape(pictureModel.model, width, height);
  const sampler = samplers[scheduler];
  const schedule = sampler.schedule(schedulerConfig, steps);
  const calls = schedule.timesteps.length;
  const positionOf = (part: number) => handOver(schedule, schedulerConfig, sampler.order, part);
  const begin =
    noiseSpan?.from !== undefined
      ? positionOf(noiseSpan.from)
      : startsFromPicture
        ? beginOfStrength(sampler, schedule, steps, strength)
        : 0;
  const end = noiseSpan?.to !== undefined ? positionOf(noiseSpan.to) : calls;
  if (startsFromPicture && begin >= calls)
    throw new RangeError(`strength: expected at least 1/${steps}, so that one of ${steps} steps is run, got ${strength}`);
  return { ...settings, sampler, schedule, begin, end, shape };
}

/** Position of the first call that belongs to the second model; as diffusers' `denoising_end` and `denoising_start`. */
function handOver({ timesteps }: Schedule, { num_train_timesteps: trained }: SchedulerConfig, order: number, part: number): number {
  const cutoff = Math.round(trained - part * trained);
  const found = timesteps.findIndex(timestep => timestep < cutoff);
  const position = found < 0 ? timesteps.length : found;
  // A second model begins with the first call of a step.
  return order === 2 && position % 2 === 1 ? position + 1 : position;
}

/** Latents after the last step of the plan, one array an item. @throws the reason of `run.signal`; RangeError */
export async function runPass(plan: PassPlan, items: readonly PassItem[], run: PassRun = {}): Promise<Float32Array[]> {
  const { pictureModel, sampler, schedule, schedulerConfig, begin, end, shape, earlierSteps } = plan;
  const prepared: PreparedItem[] = [];
  for (const item of items) prepared.push(await prepareItem(plan, item));
  run.signal?.throwIfAborted();
  if (begin >= end) return prepared.map(({ latents }) => latents);
  const range: CallRange = { begin, end, order: sampler.order, ...(earlierSteps !== undefined && { earlierSteps }) };
  const denoised = items.map((item, i) => ({ ...item, extraChannels: prepared[i]!.extraChannels }));
  const latents = await sampler.sample(schedulerConfig, schedule, {
    model: denoiser(pictureModel, denoised, shape, range),
    latents: concat(prepared.map(item => item.latents)),
    batch: items.length,
    noise: () => concat(items.map(item => item.draw("other"))),
    begin,
    end,
    ...(prepared.some(({ outside }) => outside) && { afterStep: (sample, next) => putBack(plan, prepared, sample, next) }),
    ...run,
  });
  run.signal?.throwIfAborted();
  return split(latents, items.length);
}

/** What stays as it was around a mask. */
interface Outside {
  /** [h, w], 1 where it is repainted. */
  mask: Float32Array;
  original: Float32Array;
  noise: Float32Array;
}

interface PreparedItem {
  latents: Float32Array;
  extraChannels: Float32Array | null;
  outside: Outside | null;
}

/** Draws in diffusers' order: posterior of the picture, start noise, posterior of the masked picture. */
async function prepareItem(plan: PassPlan, item: PassItem): Promise<PreparedItem> {
  const { pictureModel, strength, noiseSpan } = plan;
  const { unetInputChannels, latentChannels } = pictureModel.model.description;
  const { start } = item;
  if (start.kind === "continued") return { latents: start.latents, extraChannels: null, outside: null };
  if (item.guidance.imageScale !== null) return prepareEdit(plan, item);
  const hasMaskChannels = unetInputChannels > latentChannels;
  const isFromNoise = start.kind === "noise" || (item.mask !== null && strength === 1 && noiseSpan?.from === undefined);
  const original = await originalLatents(plan, item, isFromNoise && (hasMaskChannels || item.mask === null));
  const noise = item.draw("start");
  const latents = isFromNoise ? initialLatents(plan.schedule, noise) : noisyLatents(plan, item, original!, noise);
  if (item.mask === null || start.kind !== "image") return { latents, extraChannels: null, outside: null };
  const mask = maskOf(plan, item.mask);
  // diffusers draws it for every model, also where none reads it.
  const maskedNoise = item.draw("other");
  if (!hasMaskChannels) return { latents, extraChannels: null, outside: { mask, original: original!, noise } };
  const masked = await encodeSampled(pictureModel.model, maskedPixels(start.pixels, item.mask), maskedNoise, plan.tiled);
  return { latents, extraChannels: concat([mask, masked]), outside: null };
}

/** Clean latents of what the item starts from; null where nothing reads them. */
async function originalLatents(plan: PassPlan, { start, draw }: PassItem, isUnread: boolean): Promise<Float32Array | null> {
  if (isUnread || start.kind === "noise" || start.kind === "continued") return null;
  if (start.kind === "latents") return start.latents;
  return encodeSampled(plan.pictureModel.model, start.pixels, draw("other"), plan.tiled);
}

function noisyLatents(plan: PassPlan, { mask, fillsWithNoise }: PassItem, original: Float32Array, noise: Float32Array): Float32Array {
  const { sampler, schedule, begin } = plan;
  const filled = fillsWithNoise && mask ? withNoise(original, noise, maskOf(plan, mask)) : original;
  return sampler.addNoise(schedule, filled, noise, begin);
}

/** Noise in place of what the masked area has. */
function withNoise(original: Float32Array, noise: Float32Array, mask: Float32Array): Float32Array {
  return original.map((value, i) => (mask[i % mask.length] === 1 ? noise[i]! : value));
}

async function prepareEdit(plan: PassPlan, { start, draw }: PassItem): Promise<PreparedItem> {
  if (start.kind !== "image") throw new RangeError("source: expected a picture for a model that edits, got none");
  const latents = initialLatents(plan.schedule, draw("start"));
  return { latents, extraChannels: await encodeMean(plan.pictureModel.model, start.pixels, plan.tiled), outside: null };
}

function maskOf({ width, height, shape }: PassPlan, mask: Float32Array): Float32Array {
  return latentMask(mask, width, height, shape[3], shape[2]);
}

/** The picture with the masked area in mid grey. */
function maskedPixels({ data, shape }: TensorF32, mask: Float32Array): TensorF32 {
  return { data: data.map((value, i) => (mask[i % mask.length]! >= 0.5 ? 0 : value)), shape };
}

/** Outside the masks the latents become those of the pictures again, at the noise level that comes next. */
function putBack({ sampler, schedule }: PassPlan, prepared: readonly PreparedItem[], sample: Float32Array, next: number): Float32Array {
  const isLast = next >= schedule.timesteps.length;
  return concat(
    split(sample, prepared.length).map((latents, i) => {
      const outside = prepared[i]!.outside;
      if (outside === null) return latents;
      const { mask, original, noise } = outside;
      const kept = isLast ? original : sampler.addNoise(schedule, original, noise, next);
      return latents.map((value, k) => (mask[k % mask.length] === 1 ? value : kept[k]!));
    }),
  );
}
