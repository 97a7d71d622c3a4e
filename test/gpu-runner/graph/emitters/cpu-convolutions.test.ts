/** Convolutions of trainings read weights in layouts of their own; what they compute is what those in plain layouts do. */
import { describe, expect, test } from "vitest";
import { channelBlock } from "../../../../gpu-runner/channel-block.ts";
import type { TensorF32 } from "../../../../gpu-runner/components.ts";
import { emit } from "../../../../gpu-runner/graph/emitter.ts";
import { cpuEmitter } from "../../../../gpu-runner/graph/emitters/cpu.ts";
import { Graph, type Value } from "../../../../gpu-runner/graph/ir.ts";
import { blockedChannels } from "../../../../gpu-runner/graph/onnx.ts";
import * as ops from "../../../../gpu-runner/graph/ops.ts";
import { createSession } from "../../../../gpu-runner/session.ts";
import { relay } from "../../../../gpu-runner/weights/relaid-weights.ts";
import { storeWeights, wave } from "../../support/graph.ts";
import { temporaryFolder } from "../../support/temporary.ts";

const options = { provider: "cpu", threads: 1 } as const;
const block = await channelBlock(options);
const onBlocks = (census: ReadonlyMap<string, number>): number => census.get(`${blockedChannels}:Conv`) ?? 0;

interface Case {
  kernel: TensorF32;
  picture: TensorF32;
  bias?: TensorF32;
  build(picture: Value, kernel: Value, bias: Value | null): Value;
}

const even = { top: 1, left: 1, bottom: 1, right: 1 };
const cases: Record<string, Case> = {
  "3 x 3 with bias": {
    kernel: wave([2 * block, 3 * block, 3, 3]),
    picture: wave([2, 3 * block, 17, 16], 3),
    bias: wave([2 * block], 5),
    build: (x, kernel, bias) => ops.conv2d(x, kernel, bias, { stride: 1, pads: even }),
  },
  "strided, padded on two sides": {
    kernel: wave([block, block, 3, 3]),
    picture: wave([1, block, 33, 32], 3),
    build: (x, kernel) => ops.conv2d(x, kernel, null, { stride: 2, pads: { top: 0, left: 0, bottom: 1, right: 1 } }),
  },
  "1 x 1": {
    kernel: wave([block, 2 * block, 1, 1]),
    picture: wave([1, 2 * block, 16, 16], 3),
    build: (x, kernel) => ops.conv2d(x, kernel, null, { stride: 1, pads: { top: 0, left: 0, bottom: 0, right: 0 } }),
  },
  "input's gradient": {
    kernel: wave([2 * block, 3 * block, 3, 3]),
    picture: wave([2, 2 * block, 17, 16], 3),
    build: (dy, kernel) => ops.convInputGradient(dy, kernel, { stride: 1, pads: even, height: 17, width: 16 }),
  },
  "input's gradient, unevenly padded": {
    kernel: wave([block, 2 * block, 3, 2]),
    picture: wave([2, block, 17, 16], 3),
    build: (dy, kernel) =>
      ops.convInputGradient(dy, kernel, { stride: 1, pads: { top: 0, left: 1, bottom: 2, right: 0 }, height: 17, width: 16 }),
  },
  "input's gradient of few channels": {
    kernel: wave([3, 5, 3, 2]),
    picture: wave([2, 3, 17, 16], 3),
    build: (dy, kernel) =>
      ops.convInputGradient(dy, kernel, { stride: 1, pads: { top: 0, left: 1, bottom: 2, right: 0 }, height: 17, width: 16 }),
  },
};

async function run({ kernel, picture, bias, build }: Case, isStored: boolean) {
  const graph = new Graph("test");
  const x = graph.input("picture", picture.shape);
  const weight = isStored ? storeWeights(graph, { kernel }).kernel! : graph.input("kernel", kernel.shape);
  graph.output("y", build(x, weight, bias ? graph.input("bias", bias.shape) : null));
  const session = await createSession(graph, { ...options, cacheDir: temporaryFolder(), training: true });
  const { y } = await session.run({ picture, ...(!isStored && { kernel }), ...(bias && { bias }) });
  await session.release();
  return { census: emit(graph, cpuEmitter, { channelBlock: block }).census, y: y! };
}

describe("a stored weight gives what one that is fed does", () => {
  test.each(Object.entries(cases))("%s", async (_, example) => {
    const [stored, fed] = [await run(example, true), await run(example, false)];
    const isInBlocks = block > 1 && example.kernel.shape.slice(0, 2).every(channels => channels % block === 0);
    expect([onBlocks(stored.census), onBlocks(fed.census)]).toEqual([isInBlocks ? 1 : 0, 0]);
    expect(stored.census.has("ConvTranspose")).toBe(false);
    expect(stored.y.shape).toEqual(fed.y.shape);
    stored.y.data.forEach((value, i) => {
      expect(value).toBeCloseTo(fed.y.data[i]!, 4);
    });
  });
});

test("small pictures and serving graphs read weights as they lie", () => {
  const graph = new Graph("test");
  const { kernel } = storeWeights(graph, { kernel: wave([16, 16, 3, 3]) });
  const small = ops.conv2d(graph.input("small", [1, 16, 15, 17]), kernel!, null, { stride: 1, pads: even });
  graph.output("y", ops.convInputGradient(small, kernel!, { stride: 1, pads: even, height: 15, width: 17 }));
  graph.output("z", ops.conv2d(graph.input("large", [1, 16, 16, 16]), kernel!, null, { stride: 1, pads: even }));
  expect([...emit(graph, cpuEmitter).census]).toEqual([
    ["Conv", 2],
    ["ConvTranspose", 1],
  ]);
  expect(onBlocks(emit(graph, cpuEmitter, { channelBlock: 16 }).census)).toBe(1);
});

test("blocks of channels: output channels innermost, then input channels", () => {
  const relaid = relay(
    Float32Array.from({ length: 16 }, (_, i) => i),
    [4, 4, 1, 1],
    { flipped: false, block: 2 },
  );
  expect([...relaid]).toEqual([0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]);
});

test("flipped: channels exchanged, rows and columns reversed", () => {
  const relaid = relay(
    Float32Array.from({ length: 8 }, (_, i) => i),
    [2, 1, 2, 2],
    { flipped: true, block: 1 },
  );
  expect([...relaid]).toEqual([3, 2, 1, 0, 7, 6, 5, 4]);
});
