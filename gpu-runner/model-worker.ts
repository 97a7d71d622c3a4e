/** The model thread: holds the models, computes one batch at a time. Started by model-thread.ts. */
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { parentPort, workerData } from "node:worker_threads";
import type { ErrorCode } from "../shared/errors.ts";
import { adaptersOf, type PictureRequest } from "../shared/picture.ts";
import type { ProgressReport } from "../shared/protocol.ts";
import { AdapterStore } from "./adapters/store.ts";
import type { TrainableModel } from "./components.ts";
import { loadDiffusionModel } from "./load.ts";
import {
  type BatchItem,
  cells,
  type FromWorker,
  isCanceled,
  isTrainingCanceled,
  type TrainingTask,
  toWorkerSchema,
  workerDataSchema,
} from "./model-messages.ts";
import type { RegisteredModel } from "./model-registry.ts";
import { ModelShelf, type Shelved } from "./model-shelf.ts";
import type { PictureContext } from "./pipeline/context.ts";
import { fitPreviewMap } from "./pipeline/preview.ts";
import { runPictures } from "./pipeline/run-picture.ts";
import { tokenizersOf } from "./tokenizer/model-tokenizers.ts";
import { computeTraining, type TrainablePictureModel } from "./train/compute-training.ts";
import { trimDerived } from "./weights/derived-files.ts";
import { hashModel, openModel } from "./weights/model-source.ts";

if (!parentPort) throw new Error("model-worker.ts runs as a worker thread");
const port = parentPort;
const {
  models: configured,
  registered,
  provider,
  cacheDir,
  threads,
  memoryBudget,
  cacheBudget,
  shared,
} = workerDataSchema.parse(workerData);
const memory = new Uint32Array(shared);
/** Where the models lie, by hash: the configured ones first, then the registry's. */
const catalog = { configured: [] as RegisteredModel[], registered };
/** The computation under way: this thread's event loop doesn't turn inside the model, so cancelling comes through shared memory. */
let current: { abort: AbortController; isGivenUp(): boolean } | undefined;
/** Batches that came while a training is computed: one of them at most is computed between two of its steps. */
const betweenSteps: (() => Promise<void>)[] = [];
let isTraining = false;
/** What adapters that stay open between batches may take, as a share of what models may. */
const ADAPTER_SHARE = 0.25;
/** A sign of life for the watchdog. */
const alive = (): void => void Atomics.add(memory, cells.counter, 1);
const sessionOptions = { provider, cacheDir, alive, ...(threads !== undefined && { threads }) };
const adapters = new AdapterStore({ ...sessionOptions, budget: ADAPTER_SHARE * memoryBudget });

function post(message: FromWorker): void {
  port.postMessage(message);
}

const shelf = new ModelShelf<TrainablePictureModel>({
  budget: memoryBudget,
  estimate: weightBytes,
  load,
  onChange: (event, hash) => {
    post({ type: "note", level: "info", message: `model ${event}`, fields: { model: hash } });
    postResident();
  },
});

function postResident(): void {
  post({ type: "resident", hashes: [...shelf.resident(), ...adapters.resident()] });
}

/** What the weight files of a folder take on disk. */
function weightBytes(path: string): number {
  const stats = statSync(path);
  if (!stats.isDirectory()) return stats.size;
  const files = readdirSync(path, { recursive: true, encoding: "utf8" }).filter(name => name.endsWith(".safetensors"));
  return files.reduce((sum, name) => sum + statSync(join(path, name)).size, 0);
}

let loads = 0;
/** Says that no step is missed while the work goes on. */
async function whileLoading<T>(work: () => Promise<T>): Promise<T> {
  loads++;
  const before = Atomics.exchange(memory, cells.loading, 1);
  try {
    return await work();
  } finally {
    loads--;
    Atomics.store(memory, cells.loading, before);
    alive();
  }
}

function load(path: string, hash: string): Promise<Shelved<TrainablePictureModel>> {
  return whileLoading(async () => {
    const model = await loadDiffusionModel(path, sessionOptions);
    try {
      const found = model.description.hash;
      if (found !== hash) throw new Error(`${path} has changed: expected ${hash}, got ${found}`);
      const watched = observed(model);
      await warmUp(watched);
      const prepared = { model: watched, tokenizers: tokenizersOf(model.description), previewMap: await fitPreviewMap(watched) };
      trimDerived(cacheDir, cacheBudget);
      return { model: prepared, bytes: 4 * parametersOf(model), release: () => model.release() };
    } catch (error) {
      await model.release();
      throw error;
    }
  });
}

/** Of UNet and text encoders. */
function parametersOf({ weightShapes }: TrainableModel): number {
  const shapes = Object.values(weightShapes).flatMap(component => [...component.values()]);
  return shapes.reduce((sum, shape) => sum + shape.reduce((product, dim) => product * dim, 1), 0);
}

/** The model, watched: after each of its calls nothing is being opened any more, and a cancel is noticed. */
function observed(model: TrainableModel): TrainableModel {
  const after = async <T>(call: Promise<T>): Promise<T> => {
    const result = await call;
    if (loads === 0) Atomics.store(memory, cells.loading, 0);
    if (current?.isGivenUp()) current.abort.abort();
    return result;
  };
  return {
    description: model.description,
    source: model.source,
    weightShapes: model.weightShapes,
    unet: model.unet,
    textEncoders: model.textEncoders,
    encodeText: args => after(model.encodeText(args)),
    predict: args => after(model.predict(args)),
    encodeImage: image => after(model.encodeImage(image)),
    decodeLatents: latents => after(model.decodeLatents(latents)),
    decodePreview: model.decodePreview && (latents => after(model.decodePreview!(latents))),
    release: () => model.release(),
  };
}

/**
 * Finds what the configured paths hold and loads the first model that can be loaded, so that the first picture need not pay for it.
 * @throws where there are models, and none of them can be loaded
 */
async function begin(): Promise<void> {
  const problems: unknown[] = [];
  const note = (path: string, error: unknown) => {
    if (isDiskFull(error)) throw error;
    problems.push(error);
    post({ type: "note", level: "error", message: "a model can't be used", fields: { path, error: messageOf(error) } });
  };
  for (const path of configured) {
    await identify(path).then(
      hash => catalog.configured.push({ hash, path }),
      error => note(path, error),
    );
  }
  for (const { hash, path } of [...catalog.configured, ...catalog.registered]) {
    const model = await shelf.use(hash, path).catch(error => note(path, error));
    if (model) break;
  }
  if (shelf.resident().length === 0 && problems.length > 0) throw problems[0];
  post({ type: "loaded", models: catalog.configured });
}

async function identify(path: string): Promise<string> {
  return (await hashModel(openModel(path), cacheDir)).hash;
}

/** Makes the UNet's session now: the first picture must neither pay for it nor look like a hung thread meanwhile. */
async function warmUp(model: TrainableModel): Promise<void> {
  const { unetInputChannels, crossAttentionDim, addedConditions, textEncoders, readsGuidance } = model.description;
  const zeros = (...shape: number[]) => ({ data: new Float32Array(shape.reduce((product, dim) => product * dim, 1)), shape });
  await model.predict({
    sample: zeros(1, unetInputChannels, 8, 8),
    timesteps: [1],
    encoderHiddenStates: zeros(1, 77, crossAttentionDim),
    ...(readsGuidance && { guidance: [1] }),
    ...(addedConditions && {
      added: { textEmbeds: zeros(1, textEncoders.at(-1)?.projectionWidth ?? 0), timeIds: zeros(1, addedConditions.timeIds) },
    }),
  });
}

/** A model that this machine lacks or cannot load. */
class ModelUnavailable extends Error {}

async function modelOf(hash: string): Promise<TrainablePictureModel> {
  const found = [...catalog.configured, ...catalog.registered].find(model => model.hash === hash);
  if (!found) throw new ModelUnavailable(`This runner does not hold the model ${hash}.`);
  return shelf.use(hash, found.path).catch(error => {
    if (failure(error).retryable) throw error;
    throw new ModelUnavailable(`The model ${hash} cannot be loaded.`, { cause: error });
  });
}

async function compute(task: number, batch: readonly BatchItem[]): Promise<void> {
  shelf.unpin();
  const items = [...batch.keys()];
  const settled = await computeTogether(task, batch, items);
  // One bad member must not fail the others: what failed together is tried one by one.
  if (!settled) for (const item of items) await computeTogether(task, batch, [item]);
  await atRest(task);
}

/** Computes these items of a batch as one, and answers each. False where several failed and none was answered. */
async function computeTogether(task: number, batch: readonly BatchItem[], items: readonly number[]): Promise<boolean> {
  const abort = new AbortController();
  const isGivenUp = (item: number) => isCanceled(memory, task, item);
  const outer = current;
  current = { abort, isGivenUp: () => items.every(isGivenUp) };
  const wanted = items.filter(item => !isGivenUp(item));
  const requests = wanted.map(item => batch[item]!.request);
  const runs = wanted.map(item => ({
    onProgress: (report: ProgressReport) => {
      if (!isGivenUp(item)) post({ type: "progress", task, item, ...report });
    },
  }));
  // New adapters are read and their graphs made before the first step.
  const open = adapters.resident();
  const isReading = requests.some(request => adaptersOf(request).some(adapter => !open.includes(adapter)));
  const wasLoading = Atomics.exchange(memory, cells.loading, isReading ? 1 : 0);
  try {
    const pictures = wanted.length > 0 ? await runPictures(contextOf(wanted.map(item => batch[item]!)), requests, runs, abort.signal) : [];
    for (const item of items) {
      const picture = pictures[wanted.indexOf(item)];
      if (picture && !isGivenUp(item)) post({ type: "picture", task, item, picture });
      else post({ type: "canceled", task, item });
    }
  } catch (error) {
    const failed = failure(error, requests);
    if (!abort.signal.aborted && items.length > 1) {
      post({ type: "note", level: "error", message: "a batch failed, its members are tried alone", fields: { error: failed.detail } });
      return false;
    }
    for (const item of items) {
      if (abort.signal.aborted || isGivenUp(item)) post({ type: "canceled", task, item });
      else post({ type: "failed", task, item, ...failed });
    }
  } finally {
    current = outer;
    Atomics.store(memory, cells.loading, outer ? wasLoading : 0);
  }
  return true;
}

/** Computes a training; it stops between two steps, after a last checkpoint. */
async function trainTask(task: number, training: TrainingTask): Promise<void> {
  const [item, abort] = [0, new AbortController()];
  const isGivenUp = () => isTrainingCanceled(memory, task);
  current = { abort, isGivenUp };
  isTraining = true;
  shelf.unpin();
  try {
    const { model: hash } = training.request;
    const model = await modelOf(hash);
    // Its sessions hold weights of their own, about as many as the model's, and the values of its steps.
    let bytes = 4 * parametersOf(model.model);
    const onHeld = (more: number): void => {
      bytes += more;
      shelf.hold({ hash, bytes });
    };
    onHeld(0);
    const result = await computeTraining(training, {
      model,
      pictures: contextOf([training]),
      options: { ...sessionOptions, onHeld },
      onEvent: event => {
        // Graphs are made and files are written between the steps of one phase and those of the next: no step is missed meanwhile.
        if (event.type !== "sample") Atomics.store(memory, cells.loading, event.type === "phase" ? 1 : 0);
        post({ type: "event", task, item, event });
      },
      onCheckpoint: path => post({ type: "checkpoint", task, item, path }),
      yieldTo: async () => {
        alive();
        await new Promise(resolve => setImmediate(resolve));
        if (!isGivenUp()) await betweenSteps.shift()?.();
        if (isGivenUp()) abort.abort(new Error("the training was canceled"));
      },
      signal: abort.signal,
    });
    post({ type: "trained", task, item, result });
  } catch (error) {
    if (abort.signal.aborted) post({ type: "canceled", task, item });
    else post({ type: "failed", task, item, ...failure(error) });
  } finally {
    current = undefined;
    isTraining = false;
    shelf.hold(null);
    Atomics.store(memory, cells.loading, 0);
  }
  await atRest(task);
  while (betweenSteps.length > 0) await betweenSteps.shift()!();
}

/** A task is over: what it left gives way where it is too much. */
async function atRest(task: number): Promise<void> {
  await adapters.trim();
  trimDerived(cacheDir, cacheBudget);
  postResident();
  post({ type: "done", task });
}

/** What the pictures of a batch need from outside. */
function contextOf(batch: readonly Pick<BatchItem, "inputs">[]): PictureContext {
  const find = (what: string, paths: (item: Pick<BatchItem, "inputs">) => Record<string, string>) => (name: string) => {
    const path = batch.map(item => paths(item)[name]).find(found => found !== undefined);
    if (path === undefined) throw new Error(`the ${what} ${name} was not fetched`);
    return path;
  };
  return {
    inputs: { file: find("file", ({ inputs }) => inputs.files), adapter: find("adapter", ({ inputs }) => inputs.adapters) },
    adapters,
    model: modelOf,
  };
}

/**
 * What a client may read of an error, and the detail for the log. The same input fails the same way everywhere, unless this machine lacks
 * memory or disk.
 */
function failure(
  error: unknown,
  requests: readonly PictureRequest[] = [],
): { code: ErrorCode; message: string; retryable: boolean; detail: string } {
  const detail = requests.reduce(withoutPrompt, messageOf(error));
  if (error instanceof ModelUnavailable)
    return { code: "model_unavailable", message: error.message, retryable: false, detail: messageOf(error.cause ?? error) };
  if (isDiskFull(error)) return { code: "runner_failed", message: "The runner's disk is full.", retryable: true, detail };
  if (/alloc|out of memory/i.test(detail))
    return { code: "runner_failed", message: "The runner ran out of memory.", retryable: true, detail };
  if (error instanceof RangeError) return { code: "unsupported", message: detail, retryable: false, detail };
  return { code: "runner_failed", message: "The runner could not compute this.", retryable: false, detail };
}

function withoutPrompt(text: string, { prompt, prompt_2, negative_prompt, negative_prompt_2 }: PictureRequest): string {
  const secrets = [prompt, prompt_2, negative_prompt, negative_prompt_2];
  return secrets.reduce<string>((clean, secret) => (secret ? clean.replaceAll(secret, "[prompt]") : clean), text);
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Also where the error stands behind another one as its cause. EFBIG is what a file size limit gives. */
function isDiskFull(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  return ("code" in error && ["ENOSPC", "EDQUOT", "EFBIG"].includes(String(error.code))) || isDiskFull(error.cause);
}

port.on("message", (value: unknown) => {
  const message = toWorkerSchema.parse(value);
  if (message.type === "compute") {
    const work = () => compute(message.task, message.items);
    if (isTraining) betweenSteps.push(work);
    else void work();
  } else if (message.type === "train") void trainTask(message.task, message.training);
  else catalog.registered = message.models;
});

await begin().catch((error: unknown) => post({ type: "load_failed", message: messageOf(error), disk_full: isDiskFull(error) }));
