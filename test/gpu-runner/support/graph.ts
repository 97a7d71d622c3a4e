/** Small graphs in tests: weights written on the spot, runs on the CPU provider. */
import { join } from "node:path";
import type { TensorF32 } from "../../../gpu-runner/components.ts";
import type { Graph, Value } from "../../../gpu-runner/graph/ir.ts";
import { createSession, type Feeds } from "../../../gpu-runner/session.ts";
import { withSafetensors } from "../../../gpu-runner/weights/safetensors.ts";
import { writeSafetensors } from "../../../gpu-runner/weights/safetensors-write.ts";
import { temporaryFolder } from "./temporary.ts";
import { float32Tensor } from "./tensors.ts";

export function tensor(shape: readonly number[], values: (index: number) => number): TensorF32 {
  return { shape, data: Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => values(i)) };
}

/** Values that neither repeat nor vanish, in -1..1. */
export function wave(shape: readonly number[], phase = 0): TensorF32 {
  return tensor(shape, i => Math.sin(i * 1.7 + phase) * Math.cos(i * 0.31));
}

/** Weights as values of a graph, stored in a file of the test's own. */
export function storeWeights(graph: Graph, weights: Readonly<Record<string, TensorF32>>): Record<string, Value> {
  const file = join(temporaryFolder(), "weights.safetensors");
  const tensors = Object.entries(weights).map(([name, { shape, data }]) => float32Tensor(name, shape, data));
  writeSafetensors(file, tensors);
  return withSafetensors(file, source =>
    Object.fromEntries(
      [...source.entries.values()].map(({ name, offset, byteLength, shape }) => [
        name,
        graph.weight({ key: name, file, offset, byteLength, shape }),
      ]),
    ),
  );
}

/** Runs a graph once on the CPU. */
export async function runGraph(graph: Graph, feeds: Feeds): Promise<Record<string, TensorF32>> {
  const session = await createSession(graph, { provider: "cpu", cacheDir: temporaryFolder(), threads: 1 });
  try {
    return await session.run(feeds);
  } finally {
    await session.release();
  }
}
