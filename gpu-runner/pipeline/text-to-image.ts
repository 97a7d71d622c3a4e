/** Text to image: prompts to tokens, hidden states, guided denoising, pixels. As diffusers' StableDiffusionPipeline. */
import type { DiffusionModel, TensorF32 } from "../components.ts";
import type { SchedulerClass, SchedulerConfig } from "../schedulers/config.ts";
import { samplers } from "../schedulers/index.ts";
import { initialLatents, type Model, type SamplerRun } from "../schedulers/sampler.ts";
import type { ClipTokenizer } from "../tokenizer/clip.ts";
import { guide } from "./guidance.ts";

export interface TextToImageSettings {
  /** One an item of the batch. */
  prompts: readonly string[];
  /** As many as prompts; read only where guidance is on. */
  negativePrompts: readonly string[];
  /** Pixels; multiples of the model's `vaeScaleFactor`. */
  width: number;
  height: number;
  steps: number;
  /** 1 or less turns classifier-free guidance off. */
  guidanceScale: number;
  guidanceRescale: number;
  /** Layers of the text encoder to leave out at its end: 0, 1 or 2. */
  clipSkip: number;
  scheduler: SchedulerClass;
  schedulerConfig: SchedulerConfig;
}

export interface TextToImageResult {
  /** Latents after the last step, [B, C, h, w]. */
  latents: TensorF32;
  /** Pixels around -1..1, not clamped, [B, 3, H, W]. */
  image: TensorF32;
}

/** Shape of the latents of a batch of pictures. @throws RangeError for a size that the VAE cannot make */
export function latentShape(
  { description }: DiffusionModel,
  batch: number,
  width: number,
  height: number,
): [number, number, number, number] {
  const { vaeScaleFactor, latentChannels } = description;
  for (const [name, size] of Object.entries({ width, height })) {
    if (size < 1 || size % vaeScaleFactor !== 0) throw new RangeError(`${name}: expected a multiple of ${vaeScaleFactor}, got ${size}`);
  }
  return [batch, latentChannels, height / vaeScaleFactor, width / vaeScaleFactor];
}

/**
 * @param run unit Gaussian `latents` of `latentShape`, the noise that samplers draw, what to call after each step, and how to stop
 * @throws the reason of `run.signal`; RangeError for settings that the model cannot serve
 */
export async function textToImage(
  model: DiffusionModel,
  tokenizer: ClipTokenizer,
  settings: TextToImageSettings,
  run: Pick<SamplerRun, "latents" | "noise" | "onStep" | "signal">,
): Promise<TextToImageResult> {
  const { description } = model;
  if (description.unetInputChannels !== description.latentChannels) {
    throw new RangeError(
      `the model's UNet takes ${description.unetInputChannels} channels (inpainting), not the ${description.latentChannels} of text to image`,
    );
  }
  const shape = latentShape(model, settings.prompts.length, settings.width, settings.height);
  const context = await encodePrompts(model, tokenizer, settings);
  const sampler = samplers[settings.scheduler];
  const schedule = sampler.schedule(settings.schedulerConfig, settings.steps);
  const denoiser = guidedModel(model, context, shape, settings);
  const latents = await sampler.sample(settings.schedulerConfig, schedule, {
    ...run,
    latents: initialLatents(schedule, run.latents),
    model: denoiser,
    batch: shape[0],
  });
  run.signal?.throwIfAborted();
  const { scalingFactor } = description.vae;
  const image = await model.decodeLatents({ data: latents.map(value => value / scalingFactor), shape });
  return { latents: { data: latents, shape }, image };
}

function isGuided({ guidanceScale }: TextToImageSettings): boolean {
  return guidanceScale > 1;
}

/** Hidden states of the negative prompts, where guidance needs them, then of the prompts. As in diffusers, only prompts skip layers. */
async function encodePrompts(model: DiffusionModel, tokenizer: ClipTokenizer, settings: TextToImageSettings): Promise<TensorF32> {
  const texts = [...(isGuided(settings) ? settings.negativePrompts : []), ...settings.prompts];
  const encoding = await model.encodeText({ encoder: 0, inputIds: texts.map(tokenizer.encodePadded) });
  const states = encoding.normed(settings.clipSkip);
  const promptsStart = (states.data.length / texts.length) * (texts.length - settings.prompts.length);
  const data = encoding.normed(0).data.slice();
  data.set(states.data.subarray(promptsStart), promptsStart);
  return { data, shape: states.shape };
}

/** The UNet as a sampler sees it: with guidance, one batch holds the unconditional and the conditional half. */
function guidedModel(model: DiffusionModel, context: TensorF32, shape: readonly number[], settings: TextToImageSettings): Model {
  const [batch, ...rest] = shape;
  const items = isGuided(settings) ? 2 * batch! : batch!;
  return async (sample, timestep) => {
    const data = isGuided(settings) ? twice(sample) : sample;
    const output = await model.predict({
      sample: { data, shape: [items, ...rest] },
      timesteps: new Array<number>(items).fill(timestep),
      encoderHiddenStates: context,
    });
    return isGuided(settings) ? guide(output.data, batch!, settings.guidanceScale, settings.guidanceRescale) : output.data;
  };
}

function twice(values: Float32Array): Float32Array {
  const result = new Float32Array(2 * values.length);
  result.set(values);
  result.set(values, values.length);
  return result;
}
