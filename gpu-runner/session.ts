/** Inference sessions over emitted graphs: made with the settings that were measured (docs/graph.md), fed by name, shared by key. */
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as ort from "onnxruntime-node";
import type { TensorF32 } from "./components.ts";
import { dimName, evaluate, type Sizes, shapeName } from "./graph/dims.ts";
import { type ExecutionProviderName, emit, emitterFor } from "./graph/emitter.ts";
import { type Graph, GraphError, type Value } from "./graph/ir.ts";
import type { OnnxModel } from "./graph/onnx.ts";
import { CacheError } from "./weights/cache-error.ts";
import { linkIntoFolder } from "./weights/placement.ts";

export interface SessionOptions {
  provider: ExecutionProviderName;
  cacheDir: string;
  /** Threads of one operator; absent: the physical cores that ONNX Runtime finds. */
  threads?: number;
}

export type Feeds = Readonly<Record<string, TensorF32>>;

/** One graph, ready to run at any batch and size. */
export interface GraphSession {
  /** Runs once. Feeds and results are named as in the graph. Throws GraphError for a feed that is missing or misshapen. */
  run(feeds: Feeds): Promise<Record<string, TensorF32>>;
  release(): Promise<void>;
}

/** Emits a graph for a provider and makes its session. Throws GraphError, ProviderError, CacheError. */
export async function createSession(graph: Graph, options: SessionOptions): Promise<GraphSession> {
  const model = emit(graph, emitterFor(options.provider));
  const session = await loadModel(model, options);
  return {
    run: async feeds => {
      const results = await session.run(bindFeeds(model, feeds));
      return Object.fromEntries(Object.entries(results).map(([name, tensor]) => [name, fromOrt(name, tensor)]));
    },
    release: () => session.release(),
  };
}

async function loadModel(model: OnnxModel, options: SessionOptions): Promise<ort.InferenceSession> {
  const { folder, names } = linkIntoFolder(model.files, options.cacheDir);
  try {
    const file = join(folder, "model.onnx");
    try {
      writeFileSync(file, model.bytes(names));
    } catch (error) {
      throw new CacheError(options.cacheDir, error);
    }
    return await ort.InferenceSession.create(file, {
      executionProviders: [options.provider],
      graphOptimizationLevel: "all",
      // Shapes vary from run to run, for which a plan of the last run's buffers only adds memory.
      enableMemPattern: false,
      logSeverityLevel: 3,
      ...(options.threads ? { intraOpNumThreads: options.threads } : {}),
      extra: {
        session: {
          // Denormals slow a decaying chain down twelvefold.
          set_denormal_as_zero: "1",
          // Waiting threads sleep: spinning took half of a small picture's CPU time, from the very cores that the rest of the machine needs.
          intra_op: { allow_spinning: "0" },
        },
      },
    });
  } finally {
    // Mapped weights outlive the links that they were mapped through.
    rmSync(folder, { recursive: true, force: true });
  }
}

function bindFeeds(model: OnnxModel, feeds: Feeds): Record<string, ort.Tensor> {
  const sizes: Sizes = new Map([...model.graph.symbols()].map(([name, { input, axis }]) => [name, size(input, axis, feeds)]));
  const bound: Record<string, ort.Tensor> = {};
  for (const input of model.graph.inputs) {
    const { data, shape } = feed(input, feeds);
    const expected = input.shape.map(dim => evaluate(dim, sizes));
    const elements = expected.reduce((a, b) => a * b, 1);
    if (String(shape) !== String(expected) || data.length !== elements)
      throw new GraphError(input.name, "feed", `${shapeName(input.shape)} = [${expected}]`, `[${shape}] with ${data.length} elements`);
    bound[input.name] = new ort.Tensor("float32", data, expected);
  }
  for (const { name, dims } of model.shapeInputs)
    bound[name] = new ort.Tensor(
      "int64",
      BigInt64Array.from(dims, dim => BigInt(evaluate(dim, sizes))),
      [dims.length],
    );
  return bound;
}

function size(input: Value, axis: number, feeds: Feeds): number {
  const { shape } = feed(input, feeds);
  const dim = shape[axis];
  if (dim === undefined || dim < 1)
    throw new GraphError(input.name, "feed", `${shapeName(input.shape)}, every dim at least 1`, `[${shape}]`);
  return dim;
}

function feed(input: Value, feeds: Feeds): TensorF32 {
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
