/** A finished training's scores: the pictures that they need, in the time that there is; and what they will cost. */
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { TrainingRequest } from "../../shared/training.ts";
import { readPicture, toTensor } from "../pipeline/input-picture.ts";
import { encodeMean } from "../pipeline/latents.ts";
import type { BatchSettings } from "./batch.ts";
import type { TrainingContext } from "./context.ts";
import { type PreparedItem, prepareItems } from "./dataset.ts";
import { evaluate, evenly } from "./evaluate.ts";
import { genericPictures, makePicture, type OwnAdapter, ownItems, ownPath, ownRequest, scoringSteps } from "./own-pictures.ts";
import { gridPrompts } from "./sample-grid.ts";
import { grid, type ScoreResult, scoreTraining, withoutToken } from "./scores.ts";
import type { TrainingStep } from "./step.ts";
import { validation } from "./training-run.ts";

/** What is scored. */
export interface Scored {
  step: TrainingStep;
  settings: BatchSettings;
  /** Held out. */
  test: readonly PreparedItem[];
  /** The dataset's generic pictures; empty: the base model draws some. */
  prior: readonly PreparedItem[];
}

/** Pictures with and without the adapter that the drift is measured on. */
const driftPictures = 4;

/** The attempt's time is over: what has no score by then has none. */
class OutOfTime extends Error {}

/**
 * Null where nothing is held out, where the request wants no scores, or where the deadline comes first.
 * @throws the reason of the context's `signal`
 */
export async function scoreResult(
  request: TrainingRequest,
  context: TrainingContext,
  scored: Scored,
  adapters: readonly OwnAdapter[],
): Promise<ScoreResult | null> {
  const { test, step, settings } = scored;
  if (test.length === 0 || request.scoring.pictures === 0) return null;
  const between = async () => {
    await context.yieldTo();
    context.signal?.throwIfAborted();
    if (context.deadline !== null && Date.now() >= context.deadline) throw new OutOfTime();
  };
  try {
    const drifts: number[] = [];
    for (const own of driftRequests(request, context, test)) {
      await between();
      drifts.push(await driftOf(request, context, own, adapters));
    }
    const generic = await genericItems(request, context, scored, between);
    return await scoreTraining(step, settings, { own: test, ...generic, drifts, between });
  } catch (error) {
    if (error instanceof OutOfTime) return null;
    throw error;
  }
}

function driftRequests(request: TrainingRequest, { defaults }: TrainingContext, test: readonly PreparedItem[]) {
  const captions = [...new Set(test.map(({ item }) => withoutToken(item.caption, request)))];
  const steps = scoringSteps(request, defaults);
  return Array.from({ length: driftPictures }, (_, i) => ({
    ...{ prompt: captions[i % captions.length]!, seed: (request.seed + i) % 2 ** 32, steps },
  }));
}

/** How far the latents of a picture move by the adapter: root mean squares of the difference over that of the base's latents. */
async function driftOf(
  request: TrainingRequest,
  context: TrainingContext,
  own: { prompt: string; seed: number; steps: number },
  adapters: readonly OwnAdapter[],
): Promise<number> {
  const latents: Float32Array[] = [];
  for (const used of [[], adapters]) {
    const picture = await makePicture(context, ownRequest(request, context, { ...own, adapters: used.map(({ use }) => use) }), used);
    const path = join(context.folder, "drift.png");
    writeFileSync(path, picture.bytes);
    latents.push(await encodeMean(context.model.model, toTensor(await readPicture(path, "picture")), false));
  }
  const [base, adapted] = latents as [Float32Array, Float32Array];
  const squares = (values: Float32Array) => values.reduce((sum, value) => sum + value * value, 0);
  return Math.sqrt(squares(adapted.map((value, i) => value - base[i]!)) / squares(base));
}

/** What the base model drew has no control map, and no picture but itself to refer to: such methods are asked what they do without. */
async function genericItems(
  request: TrainingRequest,
  context: TrainingContext,
  { prior }: Scored,
  between: () => Promise<void>,
): Promise<{ generic: readonly PreparedItem[]; genericIsPlain: boolean }> {
  const { resolution, settings, scoring } = request;
  if (prior.length > 0) return { generic: evenly(prior, scoring.prior_pictures), genericIsPlain: false };
  const own = await ownItems(request, { ...context, yieldTo: between }, genericPictures(request, context), "prior");
  const generic = await prepareItems(context.model, { ...own, resolution, flip: false, cacheDir: context.cacheDir, between });
  const kind = settings.method === "evaluation" ? settings.kind : settings.method;
  return { generic, genericIsPlain: /^(controlnet|ip-adapter|t2i-adapter)$/.test(kind) };
}

/**
 * What a training will take beside its steps, in seconds: pictures and losses are counted, and a few of each are timed.
 * @param steps of the whole training @param validated held-out pictures that choose the weights
 */
export async function secondsBesideSteps(
  request: TrainingRequest,
  context: TrainingContext,
  scored: Scored,
  { steps, validated }: { steps: number; validated: readonly PreparedItem[] },
): Promise<number> {
  const { scoring, batch_size, sample_every, sample_prompts, validate_every } = request;
  const own = Math.min(scored.test.length, scoring.pictures);
  const drawn = own === 0 || scored.prior.length > 0 ? [] : genericPictures(request, context);
  const generic = own === 0 ? 0 : drawn.length || Math.min(scored.prior.length, scoring.prior_pictures);
  const calls = (pictures: number, losses: number) => pictures * Math.ceil(losses / batch_size);
  const ofScores = calls(4 * own + 2 * generic, grid.timesteps * grid.noises);
  const ofValidation = Math.ceil(steps / validate_every) * calls(Math.min(validated.length, validation.pictures), validation.timesteps);
  const undrawn = drawn.filter(each => !existsSync(ownPath(request, context, each).path)).length;
  const scoringPictures = (own === 0 ? 0 : 2 * driftPictures) + undrawn;
  const samples = (sample_every === null ? 0 : Math.floor(steps / sample_every) * sample_prompts.length) + 2 * gridPrompts(request).length;
  const [call, picture] = [await secondsOfLosses(scored, validated), await secondsOfPicture(request, context)];
  const stepsDrawn = scoringPictures * scoringSteps(request, context.defaults) + samples * context.defaults.steps;
  return call * (ofScores + ofValidation) + (scoringPictures + samples) * picture.rest + stepsDrawn * picture.step;
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const before = performance.now();
  await work();
  return (performance.now() - before) / 1000;
}

/** Of one batch, once the graph is compiled. */
async function secondsOfLosses({ step, settings, test }: Scored, validated: readonly PreparedItem[]): Promise<number> {
  const [item] = [...test, ...validated];
  if (!item) return 0;
  const plan = { items: [item], timesteps: 1, noises: settings.request.batch_size, purpose: "scores" } as const;
  const once = () => evaluate(step, settings, { ...plan, captionOf: ({ item }) => item.caption }, true);
  await once();
  return timed(once);
}

/** Of one sampling step, and of all else that a picture takes. */
async function secondsOfPicture(request: TrainingRequest, context: TrainingContext): Promise<{ step: number; rest: number }> {
  const draw = (steps: number) => makePicture(context, ownRequest(request, context, { prompt: "", seed: request.seed, steps }), []);
  await draw(2);
  const [two, four] = [await timed(() => draw(2)), await timed(() => draw(4))];
  const step = Math.max((four - two) / 2, 0);
  return { step, rest: Math.max(two - 2 * step, 0) };
}
