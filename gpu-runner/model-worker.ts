/** The model thread: holds the models, computes one picture at a time. Started by model-thread.ts. */
import { parentPort, workerData } from "node:worker_threads";
import type { ErrorCode } from "../shared/errors.ts";
import type { PictureRequest } from "../shared/picture.ts";
import type { DiffusionModel } from "./components.ts";
import { loadDiffusionModel } from "./load.ts";
import { cells, type FromWorker, toWorkerSchema, workerDataSchema } from "./model-messages.ts";
import { type PictureModel, preparePictureModel, runPicture } from "./pipeline/run-picture.ts";

if (!parentPort) throw new Error("model-worker.ts runs as a worker thread");
const port = parentPort;
const { models: folders, provider, cacheDir, threads, shared } = workerDataSchema.parse(workerData);
const memory = new Uint32Array(shared);
const models = new Map<string, PictureModel>();
/** The computation under way: this thread's event loop doesn't turn inside the model, so cancelling comes through shared memory. */
let current: { task: number; abort: AbortController } | undefined;

function post(message: FromWorker): void {
  port.postMessage(message);
}

/** The model with a sign of life after each of its calls, which is also where a cancel is noticed. */
function observed(model: DiffusionModel): DiffusionModel {
  const after = async <T>(call: Promise<T>): Promise<T> => {
    const result = await call;
    Atomics.add(memory, cells.counter, 1);
    if (current && Atomics.load(memory, cells.canceled) === current.task) current.abort.abort();
    return result;
  };
  return {
    description: model.description,
    weightShapes: model.weightShapes,
    encodeText: args => after(model.encodeText(args)),
    predict: args => after(model.predict(args)),
    encodeImage: image => after(model.encodeImage(image)),
    decodeLatents: latents => after(model.decodeLatents(latents)),
    release: () => model.release(),
  };
}

async function loadAll(): Promise<void> {
  const loaded: Extract<FromWorker, { type: "loaded" }>["models"] = [];
  for (const folder of folders) {
    const model = observed(await loadDiffusionModel(folder, { provider, cacheDir, ...(threads !== undefined && { threads }) }));
    const prepared = await preparePictureModel(model, folder);
    await warmUp(prepared);
    models.set(model.description.hash, prepared);
    loaded.push({ folder, hash: model.description.hash });
  }
  post({ type: "loaded", models: loaded });
}

/** Makes the sessions now: the first picture must neither pay for them nor look like a hung thread meanwhile. */
async function warmUp({ model, tokenizer }: PictureModel): Promise<void> {
  const text = await model.encodeText({ encoder: 0, inputIds: [tokenizer.encodePadded("")] });
  const shape = [1, model.description.unetInputChannels, 8, 8];
  const data = new Float32Array(shape.reduce((product, dim) => product * dim, 1));
  await model.predict({ sample: { data, shape }, timesteps: [1], encoderHiddenStates: text.normed(0) });
}

async function compute(task: number, request: PictureRequest): Promise<void> {
  const abort = new AbortController();
  current = { task, abort };
  try {
    const model = models.get(request.model);
    if (!model) throw new Error(`the model ${request.model} is not loaded`);
    const picture = await runPicture(model, request, {
      signal: abort.signal,
      onProgress: report => post({ type: "progress", task, ...report }),
    });
    post({ type: "picture", task, picture });
  } catch (error) {
    if (abort.signal.aborted) post({ type: "canceled", task });
    else post({ type: "failed", task, ...failure(error, request) });
  } finally {
    current = undefined;
  }
}

/**
 * What a client may read of an error, and the detail for the log. The same input fails the same way everywhere, unless this machine lacks
 * memory or disk.
 */
function failure(error: unknown, request: PictureRequest): { code: ErrorCode; message: string; retryable: boolean; detail: string } {
  const detail = withoutPrompt(messageOf(error), request);
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
  const { task, request } = toWorkerSchema.parse(value);
  void compute(task, request);
});

await loadAll().catch((error: unknown) => post({ type: "load_failed", message: messageOf(error), disk_full: isDiskFull(error) }));
