/** A training from its request to its files and report: the phases in their order. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { canonicalize, sha256Hex } from "../../shared/canonical.ts";
import type { DatasetItem, TrainingEvent, TrainingReport, TrainingRequest, TrainingResult } from "../../shared/training.ts";
import type { Picture } from "../pipeline/context.ts";
import { type BatchSettings, trainingAlphas } from "./batch.ts";
import { saveCheckpoint } from "./checkpoint.ts";
import type { OpenedStep, Optimiser, TrainingContext, TrainingStage } from "./context.ts";
import { CaptionStates, prepareItems, splitItems } from "./dataset.ts";
import { type Exported, exportResult } from "./export/index.ts";
import { describeFile, type ResultTensor } from "./export/result.ts";
import { makePicture, type OwnAdapter, ownRequest, priorItems } from "./own-pictures.ts";
import { ownUse } from "./own-use.ts";
import { datasetHash, thinned } from "./report.ts";
import { writeSampleGrid } from "./sample-grid.ts";
import type { ScoreResult } from "./scores.ts";
import { type Scored, scoreResult, secondsBesideSteps } from "./scoring.ts";
import { type Course, courses, stagesOf, stepsInAll } from "./stages.ts";
import { type RunItems, TrainingRun } from "./training-run.ts";

const calibrationSteps = 3;

interface Opened extends OpenedStep {
  /** Of the steps that are computed now, or were last. */
  run: TrainingRun;
  settings: BatchSettings;
  items: RunItems;
  /** What the scores are taken on. */
  scored: Pick<Scored, "test" | "prior">;
  stages: readonly TrainingStage[];
  /** Greatest resident set so far, in bytes. */
  memory: { peak: number };
  /** Milliseconds that others have had in `yieldTo`. */
  others: { ms: number };
}

/**
 * Computes a training. Its files lie below `context.folder`.
 * @throws the reason of `signal` after a last checkpoint; RangeError for data or settings that cannot be trained; other errors where
 * computing fails
 */
export async function train(request: TrainingRequest, given: TrainingContext): Promise<TrainingResult> {
  const others = { ms: 0 };
  const context = { ...given, yieldTo: () => countedIn(others, () => given.yieldTo()) };
  phase(context, "loading");
  const opened = await context.openStep(request);
  let optimiser: Optimiser | null = null;
  try {
    optimiser = opened.given ? nothingToMove : await context.openOptimiser(opened.step.tensors, request.optimizer);
    const training = { ...(await prepare(request, context, opened, optimiser)), others };
    if (request.dry_run) return await calibrate(request, context, training);
    phase(context, "training");
    return await finish(request, context, training, await runAll(request, context, training));
  } finally {
    await optimiser?.release();
    await opened.step.release();
  }
}

/** Of an evaluation. */
const nothingToMove: Optimiser = { state: new Map(), step: async () => 0, release: async () => {} };

/** Adds what the work takes, in milliseconds. */
async function countedIn<T>(total: { ms: number }, work: () => Promise<T>): Promise<T> {
  const before = performance.now();
  try {
    return await work();
  } finally {
    total.ms += performance.now() - before;
  }
}

function phase({ onEvent }: TrainingContext, name: Extract<TrainingEvent, { type: "phase" }>["phase"]): void {
  onEvent({ type: "phase", phase: name });
}

async function prepare(
  request: TrainingRequest,
  context: TrainingContext,
  opened: OpenedStep,
  optimiser: Optimiser,
): Promise<Omit<Opened, "others">> {
  const { step } = opened;
  const memory = { peak: process.memoryUsage.rss() };
  const split = splitItems(request.items, opened.given === undefined);
  phase(context, "caching");
  const { resolution, flip } = request;
  const between = async () => {
    await context.yieldTo();
    context.signal?.throwIfAborted();
  };
  const options = { resolution, flip, cacheDir: context.cacheDir, file: context.file, between };
  const train = await prepareItems(context.model, { ...options, items: split.train });
  const held = (items: readonly DatasetItem[]) => prepareItems(context.model, { ...options, flip: false, items });
  const validation = await held(split.validation);
  const scored = { test: await held(split.test), prior: await held(split.prior) };
  if (request.settings.method === "dreambooth" && request.settings.prior_pictures > 0) phase(context, "prior");
  const own = await priorItems(request, context);
  const prior = await prepareItems(context.model, { ...options, items: own.items, file: own.file });
  const items = { train, validation, prior };
  await opened.begin?.(train);
  const settings: BatchSettings = {
    request,
    model: context.model,
    alphas: trainingAlphas(context.model, request.loss),
    captions: trainsText(request) ? null : new CaptionStates(context.model),
    ...(opened.embed && { embed: opened.embed }),
    ...(opened.readsMaps && { readsMaps: true }),
    ...(opened.given && { adaptedCaptions: new CaptionStates(context.model, opened.given.texts) }),
    ...(opened.referenceShare !== undefined && { referenceShare: opened.referenceShare }),
  };
  const run = new TrainingRun(step, optimiser, settings, items, await sha256Hex(canonicalize(request)));
  return { ...opened, run, settings, items, scored, stages: stagesOf(opened.stages, items), memory };
}

function trainsText({ settings }: TrainingRequest): boolean {
  if (settings.method === "textual-inversion") return true;
  return (settings.method === "lora" || settings.method === "dreambooth") && settings.text_encoder;
}

/** A few steps to tell what the whole would take; nothing is kept. */
async function calibrate(request: TrainingRequest, context: TrainingContext, training: Opened): Promise<TrainingResult> {
  phase(context, "calibrating");
  const times: number[] = [];
  for (let i = 0; i < calibrationSteps; i++) {
    context.signal?.throwIfAborted();
    await context.yieldTo();
    const before = performance.now();
    await training.run.advance();
    times.push(performance.now() - before);
    watchMemory(training);
  }
  // The first step also compiles.
  const [first = 0, ...rest] = times;
  const perStep = rest.reduce((a, b) => a + b, 0) / rest.length / 1000;
  const report = await makeReport(request, training, "steps", null);
  const steps = stepsInAll(request, training.stages);
  const seconds = Math.max(first / 1000 - perStep, 0) + perStep * steps;
  const scored = { ...training.scored, step: training.step, settings: training.settings };
  const scoring_seconds = await secondsBesideSteps(request, context, scored, { steps, validated: training.items.validation });
  watchMemory(training);
  const measured = { steps, seconds, seconds_per_step: perStep, scoring_seconds, peak_memory_bytes: training.memory.peak };
  return { kind: "training", files: [], adapters: [], report: { ...report, ...measured } };
}

function watchMemory({ memory }: Opened): void {
  memory.peak = Math.max(memory.peak, process.memoryUsage.rss());
}

/** The request's steps and those of the stages; what ends one early ends all. */
async function runAll(request: TrainingRequest, context: TrainingContext, training: Opened): Promise<TrainingReport["ended_by"]> {
  const { run: own, step, stages, settings, items } = training;
  const { openOptimiser, resumeFrom } = context;
  const all = { own, values: step.tensors.values, stages, settings, items, openOptimiser: openOptimiser.bind(context) };
  for await (const course of courses(all, resumeFrom)) {
    training.run = course.run;
    const endedBy = await loop(request, context, training, course.arrays);
    course.run.finish();
    if (endedBy !== "steps") return endedBy;
  }
  return "steps";
}

async function loop(
  request: TrainingRequest,
  context: TrainingContext,
  training: Opened,
  arrays: Course["arrays"],
): Promise<TrainingReport["ended_by"]> {
  const { run } = training;
  const { progress } = run;
  const checkpoint = join(context.folder, "checkpoint.safetensors");
  const save = async () => {
    saveCheckpoint(checkpoint, arrays, progress);
    await context.onCheckpoint(checkpoint, progress.step);
  };
  let isSaved = true;
  while (progress.step < run.last) {
    await context.yieldTo();
    if (context.signal?.aborted) {
      if (!isSaved) await save();
      context.signal.throwIfAborted();
    }
    if (request.budget_ms !== null && progress.computed_ms >= request.budget_ms) return "budget";
    if (context.deadline !== null && Date.now() >= context.deadline) return "deadline";
    const [before, others] = [performance.now(), training.others.ms];
    await advance(request, context, training);
    progress.computed_ms += performance.now() - before - (training.others.ms - others);
    isSaved = progress.step % request.checkpoint_every === 0;
    if (isSaved) await save();
    if (request.sample_every !== null && progress.step % request.sample_every === 0) await sample(request, context, training);
  }
  // What follows may be cut off, too.
  if (!isSaved) await save();
  return "steps";
}

/** One step and what is said of it. */
async function advance(request: TrainingRequest, context: TrainingContext, training: Opened): Promise<void> {
  const { run } = training;
  const { loss, smoothedLoss, learningRate } = await run.advance();
  const { step, computed_ms } = run.progress;
  watchMemory(training);
  const perStep = step > 1 ? computed_ms / (step - 1) : 0;
  const steps = stepsInAll(request, training.stages);
  const wanted = ((steps - step) * perStep) / 1000;
  const allowed = request.budget_ms === null ? Number.POSITIVE_INFINITY : Math.max(request.budget_ms - computed_ms, 0) / 1000;
  context.onEvent({
    type: "step",
    step,
    steps,
    loss,
    smoothed_loss: smoothedLoss,
    learning_rate: learningRate,
    seconds_left: Math.min(wanted, allowed),
    memory_bytes: training.memory.peak,
  });
  if (step % request.validate_every !== 0 && step !== run.last) return;
  const validated = await run.validate(context.yieldTo);
  if (validated) context.onEvent({ type: "validation", step, ...validated });
}

/** The trained tensors as they stand, below a folder of the training's own. */
async function exportTensors(request: TrainingRequest, context: TrainingContext, training: Opened, folder: string): Promise<Exported> {
  const { tensors } = training.step;
  mkdirSync(folder, { recursive: true });
  const list = tensors.list.map(({ name }): ResultTensor => ({ name, ...tensors.value(name) }));
  return exportResult({
    folder,
    request,
    description: context.model.model.description,
    tensors: [...list, ...(training.constants ?? [])],
    base: training.base ?? null,
    predicted: (await training.predicted?.()) ?? null,
    ...(training.companions && { companions: training.companions }),
    metadata: {
      ss_base_model_version: context.model.model.description.family,
      ss_learning_rate: String(request.optimizer.learning_rate),
      ss_steps: String(training.run.progress.step),
      ss_seed: String(request.seed),
      ss_resolution: `(${request.resolution}, ${request.resolution})`,
      ss_num_train_images: String(request.items.length),
      ss_total_batch_size: String(request.batch_size * request.accumulation),
      ss_min_snr_gamma: String(request.loss.min_snr_gamma ?? "None"),
      ss_training_comment: `atelier ${request.settings.method}`,
    },
  });
}

/** Words stand beside one another; of LoRAs that are one concept's each, the first is shown. */
async function ownAdapters(request: TrainingRequest, { kind, adapters }: Exported, folder: string): Promise<OwnAdapter[]> {
  const shown = kind === "textual-inversion" ? adapters : adapters.slice(0, 1);
  const uses: OwnAdapter[] = [];
  for (const [concept, { files }] of shown.entries()) uses.push(await ownUse(request, kind, folder, files, concept));
  return uses;
}

/** The sample prompts with the adapter as it stands. */
async function sample(request: TrainingRequest, context: TrainingContext, training: Opened): Promise<Picture[]> {
  if (request.sample_prompts.length === 0) return [];
  const folder = join(context.folder, "sample");
  const adapters = await training.run.withKept(async () =>
    ownAdapters(request, await exportTensors(request, context, training, folder), folder),
  );
  const pictures: Picture[] = [];
  for (const prompt of request.sample_prompts) {
    await context.yieldTo();
    const uses = adapters.map(({ use }) => use);
    const picture = await makePicture(
      context,
      ownRequest(request, context, { prompt, seed: request.seed, adapters: uses, format: "webp" }),
      adapters,
    );
    pictures.push(picture);
    const preview = `data:${picture.mediaType};base64,${Buffer.from(picture.bytes).toString("base64")}`;
    context.onEvent({ type: "sample", step: training.run.progress.step, prompt, preview });
  }
  return pictures;
}

async function finish(
  request: TrainingRequest,
  context: TrainingContext,
  training: Opened,
  endedBy: TrainingReport["ended_by"],
): Promise<TrainingResult> {
  const folder = join(context.folder, "result");
  phase(context, "exporting");
  const exported = await exportTensors(request, context, training, folder);
  exported.paths.push(...(training.writeModel?.(folder) ?? []));
  phase(context, "scoring");
  const [before, others] = [performance.now(), training.others.ms];
  const paths = [...exported.paths];
  let scored: ScoreResult | null = null;
  if (endedBy !== "deadline") {
    const adapters = training.given ? [training.given.adapter] : await ownAdapters(request, exported, folder);
    paths.push(await writeSampleGrid(request, context, adapters, folder));
    const { step, settings, scored: held } = training;
    scored = await scoreResult(request, context, { step, settings, ...held }, adapters);
  }
  const scoring_seconds = (performance.now() - before - (training.others.ms - others)) / 1000;
  const report = { ...(await makeReport(request, training, endedBy, scored)), scoring_seconds };
  writeFileSync(join(folder, "report.json"), `${JSON.stringify({ ...report, request }, null, 1)}\n`);
  const files = [];
  for (const path of [...paths, "report.json"]) files.push(await describeFile(folder, path));
  return { kind: "training", files, adapters: exported.adapters, report: thinned(report) };
}

async function makeReport(
  request: TrainingRequest,
  { run: { progress }, step, memory, items, scored }: Opened,
  endedBy: TrainingReport["ended_by"],
  result: ScoreResult | null,
): Promise<TrainingReport> {
  const seconds = progress.computed_ms / 1000;
  return {
    method: request.settings.method,
    dataset_hash: await datasetHash(request),
    steps: progress.step,
    ended_by: endedBy,
    losses: progress.losses,
    validation: progress.validation,
    best_step: progress.best?.step ?? progress.step,
    seconds,
    seconds_per_step: progress.step === 0 ? 0 : seconds / progress.step,
    peak_memory_bytes: memory.peak,
    trained_parameters: step.tensors.values.length,
    scores: result?.scores ?? null,
    ...(result && { picture_losses: result.pictures }),
    pictures: {
      train: items.train.length,
      validation: items.validation.length,
      test: Math.min(scored.test.length, request.scoring.pictures),
      prior: request.scoring.pictures === 0 ? 0 : Math.min(scored.prior.length || Infinity, request.scoring.prior_pictures),
      validation_is_test: items.validation.some(({ item }) => scored.test.some(other => other.item === item)),
      prior_from: request.scoring.prior_pictures === 0 ? null : scored.prior.length > 0 ? "dataset" : "model",
    },
  };
}
