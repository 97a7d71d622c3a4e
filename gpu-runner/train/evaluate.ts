/** Losses at fixed noise and timesteps: what validation and scores compare. */
import { assembleBatch, type BatchItem, type BatchSettings } from "./batch.ts";
import { itemNoise } from "./data-cursor.ts";
import type { PreparedItem } from "./dataset.ts";
import type { TrainingStep } from "./step.ts";

export interface EvaluationPlan {
  items: readonly PreparedItem[];
  /** Timesteps per picture, in the middle of equal parts of the request's range. */
  timesteps: number;
  /** Noises per picture and timestep. */
  noises: number;
  /** What the model is told of an item. */
  captionOf(item: PreparedItem): string;
  /** What it is for: noises of another purpose are others. */
  purpose: keyof typeof evaluationDraws;
  /** Without reference pictures and control maps. */
  dropsCondition?: boolean;
  /** Awaited after each picture. */
  between?: () => Promise<void>;
}

/** Draws past those of a training's batches, which count from 0. */
const evaluationDraws = { validation: 2 ** 32, scores: 2 ** 33 } as const;

/**
 * Unweighted losses by picture of the model with what was learned, or of the base, which reads new tokens as plain text:  each [timestep][noise] in one list. The noise depends on picture, timestep and noise number alone, so that
 * calls with other captions or weights are paired.
 */
export async function evaluate(step: TrainingStep, trained: BatchSettings, plan: EvaluationPlan, adapted: boolean): Promise<number[][]> {
  const { request, model } = trained;
  const settings = { ...trained, readsPlainTokens: !adapted };
  const [first, last] = request.loss.timesteps;
  const { latentChannels } = model.model.description;
  const result: number[][] = [];
  for (const [picture, source] of plan.items.entries()) {
    const plane = source.latents[0]!.length / latentChannels;
    const items = Array.from({ length: plan.timesteps * plan.noises }, (_, i): BatchItem => {
      const part = Math.floor(i / plan.noises);
      return {
        source,
        caption: plan.captionOf(source),
        timestep: Math.floor(first + ((part + 0.5) * (last - first + 1)) / plan.timesteps),
        isFlipped: false,
        dropsCondition: plan.dropsCondition ?? false,
        noise: itemNoise(request.seed, [evaluationDraws[plan.purpose] + picture, i], latentChannels, plane, 0),
        weight: 1,
      };
    });
    result.push(await losses(step, settings, items, adapted));
    await plan.between?.();
  }
  return result;
}

/** In batches of the training's own size, the last one filled up, so that no graph is compiled for evaluations alone. */
async function losses(step: TrainingStep, settings: BatchSettings, items: readonly BatchItem[], adapted: boolean): Promise<number[]> {
  const { batch_size } = settings.request;
  const result: number[] = [];
  for (let start = 0; start < items.length; start += batch_size) {
    const batch = Array.from({ length: batch_size }, (_, i) => items[Math.min(start + i, items.length - 1)]!);
    result.push(...(await step.losses(await assembleBatch(settings, batch, null), adapted)));
  }
  return result.slice(0, items.length);
}

/** At most so many of a list, evenly chosen: of several concepts' pictures some of each. */
export function evenly<T>(list: readonly T[], most: number): T[] {
  if (list.length <= most) return [...list];
  return Array.from({ length: most }, (_, i) => list[Math.floor((i * list.length) / most)]!);
}

export function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
