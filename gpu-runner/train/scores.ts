/** What a training has achieved, as numbers with intervals that need no other model: see docs/training.md. */
import type { PictureLosses, Score, TrainingRequest, TrainingScores } from "../../shared/training.ts";
import type { BatchSettings } from "./batch.ts";
import type { PreparedItem } from "./dataset.ts";
import { type EvaluationPlan, evaluate, evenly, mean } from "./evaluate.ts";
import { randomKey, uniform } from "./random.ts";
import type { TrainingStep } from "./step.ts";

/** Losses of a picture. */
export const grid = { timesteps: 8, noises: 4 } as const;
const resamples = 1000;

/** Losses by picture of the base and of the adapted model, paired. */
export interface PairedLosses {
  base: readonly (readonly number[])[];
  adapted: readonly (readonly number[])[];
}

/** 1 - L_adapted / L_base. */
export function gainOf({ base, adapted }: PairedLosses): number {
  return 1 - mean(adapted.flat()) / mean(base.flat());
}

/**
 * A statistic of pictures with its 95 % interval by the two-level bootstrap (Davison and Hinkley 1997, section 3.8): pictures are drawn
 * with replacement and within each its losses, since losses of one picture depend on one another. The draws are fixed.
 * @param of the statistic of one resample: by picture, which of its losses
 */
export function bootstrap(
  pictures: number,
  losses: number,
  seed: number,
  of: (draw: readonly (readonly [number, readonly number[]])[]) => number,
): Score {
  const all = Array.from({ length: losses }, (_, i) => i);
  const value = of(Array.from({ length: pictures }, (_, i) => [i, all]));
  const values = Array.from({ length: resamples }, (_, resample) => {
    let drawn = 0;
    const pick = (count: number) => Math.floor(uniform(randomKey(seed, "bootstrap", resample, drawn++)) * count);
    return of(Array.from({ length: pictures }, () => [pick(pictures), all.map(() => pick(losses))]));
  }).sort((a, b) => a - b);
  const quantile = (share: number) => values[Math.round(share * (resamples - 1))]!;
  return { value, low: quantile(0.025), high: quantile(0.975) };
}

function drawn(losses: PairedLosses["base"], draw: readonly (readonly [number, readonly number[]])[]): number[][] {
  return draw.map(([picture, places]) => places.map(place => losses[picture]![place]!));
}

function scoreOf(of: (take: (losses: PairedLosses["base"]) => number[][]) => number, losses: PairedLosses["base"], seed: number): Score {
  return bootstrap(losses.length, losses[0]!.length, seed, draw => of(list => drawn(list, draw)));
}

export function gainScore({ base, adapted }: PairedLosses, seed: number): Score {
  return scoreOf(take => gainOf({ base: take(base), adapted: take(adapted) }), base, seed);
}

/** The gain with the token less the gain without it, over the same draws. */
export function bindingScore(named: PairedLosses, unnamed: PairedLosses, seed: number): Score {
  const gain = (pair: PairedLosses, take: (losses: PairedLosses["base"]) => number[][]) =>
    gainOf({ base: take(pair.base), adapted: take(pair.adapted) });
  return scoreOf(take => gain(named, take) - gain(unnamed, take), named.base, seed);
}

/** L_adapted / L_base on generic pictures: 1 is untouched. */
export function priorScore({ base, adapted }: PairedLosses, seed: number): Score {
  return scoreOf(take => mean(take(adapted).flat()) / mean(take(base).flat()), base, seed);
}

/** The mean of one number per picture, such as the drift of its latents. */
export function meanScore(values: readonly number[], seed: number): Score {
  return bootstrap(values.length, 1, seed, draw => mean(draw.map(([picture]) => values[picture]!)));
}

/** The words of a caption without the concept's token: its class where there is one. */
export function withoutToken(caption: string, { concepts }: Pick<TrainingRequest, "concepts">): string {
  const replaced = concepts.reduce((text, { token, class_prompt }) => {
    const isNamed = class_prompt !== null && text.replaceAll(token, "").toLowerCase().includes(class_prompt.toLowerCase());
    return text.replaceAll(token, isNamed ? "" : (class_prompt ?? ""));
  }, caption);
  return replaced.replace(/\s+/g, " ").trim();
}

export interface ScoredPictures {
  /** Held out. */
  own: readonly PreparedItem[];
  /** Of what the base model knows, with captions of its own; empty: no prior is scored. */
  generic: readonly PreparedItem[];
  /** Whether the generic pictures come without reference pictures and control maps. */
  genericIsPlain?: boolean;
  /** Awaited after each picture's losses. */
  between?: () => Promise<void>;
  /** Relative root mean square differences of latents at the same seed on prompts without the token. */
  drifts: readonly number[];
}

export interface ScoreResult {
  scores: TrainingScores;
  /** Of the held-out pictures that were scored. */
  pictures: PictureLosses[];
}

/** The losses that are compared: of at most `scoring.pictures` held-out pictures. Null where no picture is held out. */
export async function scoreTraining(
  step: TrainingStep,
  settings: BatchSettings,
  { own, generic, drifts, genericIsPlain = false, between }: ScoredPictures,
): Promise<ScoreResult | null> {
  const { request } = settings;
  if (own.length === 0 || drifts.length === 0 || request.scoring.pictures === 0) return null;
  const paired = async (
    items: readonly PreparedItem[],
    captionOf: EvaluationPlan["captionOf"],
    dropsCondition = false,
  ): Promise<PairedLosses> => {
    const plan: EvaluationPlan = { items, ...grid, captionOf, purpose: "scores", dropsCondition, ...(between && { between }) };
    return { base: await evaluate(step, settings, plan, false), adapted: await evaluate(step, settings, plan, true) };
  };
  const scored = evenly(own, request.scoring.pictures);
  const named = await paired(scored, ({ item }) => item.caption);
  const unnamed = await paired(scored, ({ item }) => withoutToken(item.caption, request));
  const prior = generic.length > 0 ? priorScore(await paired(generic, ({ item }) => item.caption, genericIsPlain), request.seed) : null;
  return {
    scores: {
      gain: gainScore(named, request.seed),
      binding: bindingScore(named, unnamed, request.seed),
      prior,
      drift: meanScore(drifts, request.seed),
    },
    pictures: scored.map(({ item: { sha256, concept } }, i) => ({
      ...{ sha256, concept, base: mean(named.base[i]!), adapted: mean(named.adapted[i]!) },
    })),
  };
}
