/** Which convolutions over blocks of channels this machine's ONNX Runtime has: what they are is not told, so they are tried. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import * as ort from "onnxruntime-node";
import { emit, emitterFor } from "./graph/emitter.ts";
import { Graph } from "./graph/ir.ts";
import { conv2d } from "./graph/ops.ts";
import { type OrtOptions, openOrt } from "./ort-session.ts";
import { placeRelaid } from "./weights/relaid-weights.ts";

/** Of AVX-512, AVX and Neon. */
const candidates = [16, 8, 4];

let found: Promise<number> | undefined;

/** Channels that lie side by side; 1 where there are no such convolutions. Tried once in a process. */
export function channelBlock(options: OrtOptions): Promise<number> {
  found ??= (async () => {
    for (const block of candidates) if (await convolves(block, options)) return block;
    return 1;
  })();
  return found;
}

/** Side of a picture that is large enough for blocks. */
const side = 16;

/** Whether a convolution over blocks of so many channels computes what it should: of 1 x 1, on twice as many channels. */
async function convolves(block: number, options: OrtOptions): Promise<boolean> {
  const channels = 2 * block;
  const shape = [1, channels, side, side];
  const area = side * side;
  // Small integers, so that sums are exact in any order.
  const x = Float32Array.from({ length: channels * area }, (_, i) => (i % 7) - 3);
  const weight = Float32Array.from({ length: channels * channels }, (_, i) => (i % 11) - 5);
  const expected = Float32Array.from(x, (_, i) => {
    const [row, pixel] = [Math.floor(i / area), i % area];
    return Array.from({ length: channels }, (_, k) => weight[row * channels + k]! * x[k * area + pixel]!).reduce((a, b) => a + b);
  });
  const folder = mkdtempSync(join(tmpdir(), "atelier-"));
  try {
    const session = await openOrt(writeConvolution(folder, weight, { block, shape }), options, "training");
    const { y } = await session.run({ x: new ort.Tensor("float32", x, shape) });
    await session.release();
    return expected.every((value, i) => y?.data[i] === value);
  } catch {
    // Without such kernels the session cannot be made.
    return false;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** The model's file. */
function writeConvolution(folder: string, weight: Float32Array, { block, shape }: { block: number; shape: readonly number[] }): string {
  const channels = shape[1]!;
  const stored = {
    key: "weight",
    file: join(folder, "weight"),
    offset: 0,
    byteLength: weight.byteLength,
    shape: [channels, channels, 1, 1],
  };
  writeFileSync(stored.file, new Uint8Array(weight.buffer));
  const graph = new Graph("channel-block");
  const pads = { top: 0, left: 0, bottom: 0, right: 0 };
  graph.output("y", conv2d(graph.input("x", shape), graph.weight(stored), null, { stride: 1, pads }));
  const model = emit(graph, emitterFor("cpu"), { channelBlock: block });
  const file = join(folder, "model.onnx");
  writeFileSync(file, model.bytes(placeRelaid(model.relaid, folder).map(path => relative(folder, path))));
  return file;
}
