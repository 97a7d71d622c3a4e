/** Inference sessions over emitted graphs: opened progressively, fed by name, shared by key. */
import { rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as ort from "onnxruntime-node";
import { planMemory } from "./autodiff/memory-plan.ts";
import { channelBlock } from "./channel-block.ts";
import type { TensorF32 } from "./components.ts";
import { dimName, evaluate, type Sizes, shapeName } from "./graph/dims.ts";
import { emit, emitterFor } from "./graph/emitter.ts";
import { type Graph, GraphError, type Value } from "./graph/ir.ts";
import type { OnnxModel } from "./graph/onnx.ts";
import { type Opening, type OrtOptions, openOrt } from "./ort-session.ts";
import { discardPrepared, findPrepared, type PreparedStore, prepare, preparedKey } from "./prepared-models.ts";
import { CacheError } from "./weights/cache-error.ts";
import { linkIntoFolder } from "./weights/placement.ts";
import { placeRelaid } from "./weights/relaid-weights.ts";

export interface SessionOptions extends OrtOptions, PreparedStore {
  /** Weights beyond which a graph is opened quickly and optimised in the background, in bytes. */
  progressiveFrom?: number;
  /** A sign of life: called after each run, and again and again while something long is written. */
  alive?: () => void;
  /** A graph with gradients, of numeric sizes; absent: a graph that serves. */
  training?: boolean;
  /** Of `training`: told before anything is opened how many bytes the values of a run will take at their worst. What it throws ends the opening. */
  onPlanned?: (bytes: number) => void;
}

/** Up to here optimising takes less than a second, and the disk space is better spent otherwise. */
const PROGRESSIVE_FROM = 256 * 2 ** 20;

export type Feeds = Readonly<Record<string, TensorF32>>;

/** One graph, ready to run at any batch and size. */
export interface GraphSession {
  /** Runs once. Feeds and results are named as in the graph. Throws GraphError for a feed that is missing or misshapen. */
  run(feeds: Feeds): Promise<Record<string, TensorF32>>;
  release(): Promise<void>;
}

/**
 * Emits a graph for a provider and makes its session. A large graph whose optimised form lies on disk maps that; else it serves at once from
 * the graph as it is, and changes over when the optimised form is ready. Throws GraphError, ProviderError, CacheError.
 */
export async function createSession(graph: Graph, options: SessionOptions): Promise<GraphSession> {
  const emitter = emitterFor(options.provider);
  const model = emit(graph, emitter, { channelBlock: options.training ? await channelBlock(options) : 1 });
  if (options.training) options.onPlanned?.(planMemory(model).peakBytes);
  const opened = await open(model, options);
  return sessionOf(opened, feedingOf(model), options);
}

/** What a run needs to know of a model, which itself, with its graph, may go. */
type Feeding = Pick<OnnxModel, "shapeInputs" | "conditionInputs"> & {
  inputs: readonly Pick<Value, "name" | "shape">[];
  /** The input and its axis that tell a symbol's size, by the symbol. */
  symbols: ReadonlyMap<string, { input: Pick<Value, "name" | "shape">; axis: number }>;
};

function feedingOf({ graph, shapeInputs, conditionInputs }: OnnxModel): Feeding {
  const alone = ({ name, shape }: Value): Pick<Value, "name" | "shape"> => ({ name, shape });
  const symbols = new Map([...graph.symbols()].map(([name, { input, axis }]) => [name, { input: alone(input), axis }]));
  return { inputs: graph.inputs.map(alone), symbols, shapeInputs, conditionInputs };
}

function sessionOf(opened: Opened, feeding: Feeding, options: SessionOptions): GraphSession {
  const inTurn = turns();
  return {
    run: feeds =>
      inTurn(async () => {
        const session = await opened.session();
        const results = await session.run(bindFeeds(feeding, feeds));
        options.alive?.();
        return Object.fromEntries(Object.entries(results).map(([name, tensor]) => [name, fromOrt(name, tensor)]));
      }),
    release: () => inTurn(() => opened.release()),
  };
}

/**
 * One thing after the other: a session is neither exchanged nor released under a run that waits. Nothing is lost by it, since ONNX
 * Runtime's binding computes on the thread that asks.
 */
function turns(): <T>(work: () => Promise<T>) => Promise<T> {
  let last: Promise<unknown> = Promise.resolve();
  return work => {
    const result = last.then(work);
    last = result.catch(() => undefined);
    return result;
  };
}

/** An open model, of which the best form that there is now is used. */
interface Opened {
  session(): Promise<ort.InferenceSession>;
  release(): Promise<void>;
}

async function open(model: OnnxModel, options: SessionOptions): Promise<Opened> {
  if (options.training) return settled(await openWhole(model, options, "training"));
  const bytes = model.files.reduce((sum, file) => sum + statSync(file).size, 0);
  if (bytes < (options.progressiveFrom ?? PROGRESSIVE_FROM)) return settled(await openWhole(model, options, "optimised"));
  const key = preparedKey(model.bytes(model.files), model.files, options);
  return (await openPrepared(options, key)) ?? openProgressively(model, bytes, options, key);
}

function settled(session: ort.InferenceSession): Opened {
  return { session: async () => session, release: () => session.release() };
}

async function openPrepared(options: SessionOptions, key: string): Promise<Opened | undefined> {
  const file = findPrepared(options, key);
  if (!file) return undefined;
  try {
    return settled(await openOrt(file, options, "prepared"));
  } catch {
    discardPrepared(options, key);
    return undefined;
  }
}

/** Opens the graph as it is, has its optimised form prepared, and takes that from the first run on after it is ready. */
async function openProgressively(model: OnnxModel, bytes: number, options: SessionOptions, key: string): Promise<Opened> {
  const linked = linkModel(model, options);
  const abort = new AbortController();
  let current = await openOrt(linked.file, options, "quick").catch(error => {
    linked.remove();
    throw error;
  });
  let ready: string | undefined;
  const preparation = prepare(options, key, { file: linked.file, bytes }, options, abort.signal)
    .then(file => {
      ready = file;
    })
    .finally(linked.remove);
  return {
    session: async () => {
      if (ready === undefined) return current;
      ready = undefined;
      const prepared = await openPrepared(options, key);
      if (!prepared) return current;
      await current.release();
      current = await prepared.session();
      return current;
    },
    release: async () => {
      abort.abort();
      await preparation;
      await current.release();
    },
  };
}

async function openWhole(model: OnnxModel, options: SessionOptions, opening: Opening): Promise<ort.InferenceSession> {
  const linked = linkModel(model, options);
  try {
    return await openOrt(linked.file, options, opening);
  } finally {
    // Mapped weights outlive the links that they were mapped through.
    linked.remove();
  }
}

/** The model's file in a folder of its own, beside links to its weights. */
function linkModel(model: OnnxModel, { cacheDir, alive }: SessionOptions): { file: string; remove(): void } {
  const { folder, names } = linkIntoFolder([...model.files, ...placeRelaid(model.relaid, cacheDir, alive)], cacheDir);
  const remove = (): void => rmSync(folder, { recursive: true, force: true });
  const file = join(folder, "model.onnx");
  try {
    writeFileSync(file, model.bytes(names));
  } catch (error) {
    remove();
    throw new CacheError(cacheDir, error);
  }
  return { file, remove };
}

function bindFeeds(feeding: Feeding, feeds: Feeds): Record<string, ort.Tensor> {
  const sizes: Sizes = new Map([...feeding.symbols].map(([name, { input, axis }]) => [name, size(input, axis, feeds)]));
  const bound: Record<string, ort.Tensor> = {};
  for (const input of feeding.inputs) {
    const { data, shape } = feed(input, feeds);
    const expected = input.shape.map(dim => evaluate(dim, sizes));
    const elements = expected.reduce((a, b) => a * b, 1);
    if (String(shape) !== String(expected) || data.length !== elements)
      throw new GraphError(input.name, "feed", `${shapeName(input.shape)} = [${expected}]`, `[${shape}] with ${data.length} elements`);
    bound[input.name] = new ort.Tensor("float32", data, expected);
  }
  for (const { name, dims } of feeding.shapeInputs)
    bound[name] = new ort.Tensor(
      "int64",
      BigInt64Array.from(dims, dim => BigInt(evaluate(dim, sizes))),
      [dims.length],
    );
  for (const { name, dim, atLeast } of feeding.conditionInputs) bound[name] = new ort.Tensor("bool", [evaluate(dim, sizes) >= atLeast], []);
  return bound;
}

function size(input: Pick<Value, "name" | "shape">, axis: number, feeds: Feeds): number {
  const { shape } = feed(input, feeds);
  const dim = shape[axis];
  if (dim === undefined || dim < 1)
    throw new GraphError(input.name, "feed", `${shapeName(input.shape)}, every dim at least 1`, `[${shape}]`);
  return dim;
}

function feed(input: Pick<Value, "name" | "shape">, feeds: Feeds): TensorF32 {
  const tensor = feeds[input.name];
  if (!tensor) throw new GraphError(input.name, "feed", `a tensor [${input.shape.map(dimName).join(", ")}]`, "none");
  return tensor;
}

function fromOrt(name: string, tensor: ort.Tensor): TensorF32 {
  const { data, dims } = tensor;
  if (!(data instanceof Float32Array)) throw new GraphError(name, "output", "float32", tensor.type);
  return { data, shape: dims };
}

/** A share in a session; `release` it once. */
export interface SessionLease {
  session: Promise<GraphSession>;
  release(): Promise<void>;
}

/** Sessions by key, each made once and released with its last user. */
export class SessionCache {
  readonly #sessions = new Map<string, { session: Promise<GraphSession>; users: number }>();

  /** A share in the session of this key, which `make` makes if there is none. A failed making is not kept. */
  acquire(key: string, make: () => Promise<GraphSession>): SessionLease {
    const shared = this.#sessions.get(key) ?? { session: make(), users: 0 };
    if (shared.users++ === 0) {
      this.#sessions.set(key, shared);
      shared.session.catch(() => this.#sessions.delete(key));
    }
    const release = async (): Promise<void> => {
      if (--shared.users > 0) return;
      this.#sessions.delete(key);
      // A session whose making failed has nothing to release, and its error went to who asked for it.
      await shared.session.then(
        session => session.release(),
        () => undefined,
      );
    };
    return { session: shared.session, release };
  }
}
