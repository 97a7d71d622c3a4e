/** Whole models against PyTorch's numbers, and against themselves at other batches and sizes. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { TensorF32, TrainableModel } from "../../../gpu-runner/components.ts";
import { emit, emitterFor } from "../../../gpu-runner/graph/emitter.ts";
import type { Graph } from "../../../gpu-runner/graph/ir.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { buildVaeDecoder, buildVaeEncoder } from "../../../gpu-runner/models/autoencoder-kl.ts";
import { buildTextEncoder, poolingPosition } from "../../../gpu-runner/models/clip-text.ts";
import { buildUnet, timestepFeatures } from "../../../gpu-runner/models/unet.ts";
import { verifyKinds } from "../../../gpu-runner/verify/kinds/index.ts";
import { runCases } from "../../../gpu-runner/verify/run.ts";
import { openModel } from "../../../gpu-runner/weights/model-source.ts";
import { withSafetensors } from "../../../gpu-runner/weights/safetensors.ts";
import type { WeightSource } from "../../../gpu-runner/weights/weights.ts";
import { wave } from "../support/graph.ts";
import { copyModel, goldenModel, goldens, widenWeights } from "../support/model-folder.ts";
import { temporaryFolder } from "../support/temporary.ts";

const modelKinds = ["text-encoder", "unet", "vae-encode", "vae-decode"];
const families = join(goldens, "../families");
const load = (path: string): Promise<TrainableModel> =>
  loadDiffusionModel(path, { provider: "cpu", cacheDir: temporaryFolder(), threads: 1 });

describe("reference cases", () => {
  // The second folder has the geometries that the first lacks: settings per block, one level, five levels, fp32, bf16, an encoder without prefix.
  // The third has SDXL's refiner, an edit UNet in shards, an SDXL inpainting UNet, a latent consistency model, TAESD.
  test.each([
    [goldens, modelKinds],
    [join(goldens, "../geometries"), modelKinds],
    [families, [...modelKinds, "preview-decode"]],
  ])("all of %s pass", async (folder, only) => {
    const results = await runCases({ folder, kinds: verifyKinds, only, cacheDir: temporaryFolder(), load });
    expect(results.filter(({ status }) => status !== "pass")).toEqual([]);
    expect(new Set(results.map(({ kind }) => kind))).toEqual(new Set(only));
  });
});

/** Item `index` of a batch. */
function item({ data, shape }: TensorF32, index: number): TensorF32 {
  const size = data.length / shape[0]!;
  return { data: data.slice(index * size, (index + 1) * size), shape: [1, ...shape.slice(1)] };
}

function largestDifference(a: TensorF32, b: TensorF32): number {
  expect(a.shape).toEqual(b.shape);
  return a.data.reduce((worst, value, i) => Math.max(worst, Math.abs(value - b.data[i]!)), 0);
}

describe("one loaded model", () => {
  const cacheDir = mkdtempSync(join(tmpdir(), "atelier-test-"));
  let model: TrainableModel;
  beforeAll(async () => {
    model = await loadDiffusionModel(goldenModel, { provider: "cpu", cacheDir, threads: 1 });
  });
  afterAll(async () => {
    await model.release();
    rmSync(cacheDir, { recursive: true });
  });

  test.each([
    [5, 7],
    [8, 8],
    [1, 3],
  ])("predicts each item of a batch at %i x %i as it does alone, with a timestep of its own", async (height, width) => {
    const sample = wave([3, 4, height, width]);
    const encoderHiddenStates = wave([3, 11, 24], 1);
    const timesteps = [999, 0.5, 42];
    const together = await model.predict({ sample, timesteps, encoderHiddenStates });
    for (const i of [0, 1, 2]) {
      const alone = await model.predict({
        sample: item(sample, i),
        timesteps: [timesteps[i]!],
        encoderHiddenStates: item(encoderHiddenStates, i),
      });
      expect(largestDifference(item(together, i), alone)).toBeLessThan(1e-5);
    }
  });

  test("encodes and decodes pictures of any size, each item as it is alone", async () => {
    const image = wave([2, 3, 40, 24]);
    const { mean, logvar } = await model.encodeImage(image);
    expect(mean.shape).toEqual([2, 4, 5, 3]);
    const alone = await model.encodeImage(item(image, 1));
    expect(largestDifference(item(mean, 1), alone.mean)).toBeLessThan(1e-5);
    expect(logvar.data.every(value => value >= -30 && value <= 20)).toBe(true);
    const sample = await model.decodeLatents(mean);
    expect(sample.shape).toEqual([2, 3, 40, 24]);
    expect(largestDifference(item(sample, 0), await model.decodeLatents(item(mean, 0)))).toBeLessThan(1e-5);
  });

  test("encodes texts of any length causally: a prefix has the states that it has within the whole", async () => {
    const ids = [7, 19, 101, 1200, 3, 1213];
    const whole = (await model.encodeText({ encoder: 0, inputIds: [ids] })).normed(0);
    const prefix = (await model.encodeText({ encoder: 0, inputIds: [ids.slice(0, 4)] })).normed(0);
    expect(prefix.shape).toEqual([1, 4, 24]);
    expect(largestDifference(prefix, { data: whole.data.slice(0, 4 * 24), shape: [1, 4, 24] })).toBeLessThan(1e-5);
  });

  test("gives every state from the last layer's down to the embeddings, and says which skip is beyond them", async () => {
    const encoding = await model.encodeText({ encoder: 0, inputIds: [[1, 2, 3]] });
    const states = [0, 1, 2, 3].map(skip => encoding.hidden(skip));
    expect(new Set(states.map(({ data }) => data[0])).size).toBe(4);
    for (const skip of [0, 3]) expect(encoding.normed(skip).shape).toEqual([1, 3, 24]);
    expect(() => encoding.hidden(4)).toThrow("clip skip: expected 0 to 3, got 4");
    expect(() => encoding.normed(4)).toThrow(RangeError);
  });

  test("takes rows for ids beyond the vocabulary; a copy of a token's row encodes as that token", async () => {
    const table = withSafetensors(join(goldenModel, "text_encoder/model.safetensors"), file =>
      file.readFloat32("text_model.embeddings.token_embedding.weight"),
    );
    const extraEmbeddings = { data: table.slice(7 * 24, 9 * 24), shape: [2, 24] };
    const plain = await model.encodeText({ encoder: 0, inputIds: [[1212, 7, 8, 1213]] });
    const extra = await model.encodeText({ encoder: 0, inputIds: [[1212, 1214, 1215, 1213]], extraEmbeddings });
    expect(extra.normed(0)).toEqual(plain.normed(0));
    // The largest id that the vocabulary has is the end of text, not the largest id.
    expect(extra.pooled).toEqual(plain.pooled);
    await expect(model.encodeText({ encoder: 0, inputIds: [[1216]], extraEmbeddings })).rejects.toThrow("expected 0 to 1215, got 1216");
    await expect(model.encodeText({ encoder: 0, inputIds: [[1]], extraEmbeddings: wave([1, 25]) })).rejects.toThrow(
      "rows of 24, got [1,25]",
    );
  });

  test("says which ids, lengths and encoders it lacks, and which timesteps it misses", async () => {
    const encode = (inputIds: number[][], encoder = 0) => model.encodeText({ encoder, inputIds });
    await expect(encode([[1214]])).rejects.toThrow("token id: expected 0 to 1213, got 1214");
    await expect(encode([Array<number>(78).fill(1)])).rejects.toThrow(
      "token ids: expected lists of one length from 1 to 77, got lengths [78]",
    );
    await expect(encode([[1, 2], [1]])).rejects.toThrow("got lengths [2,1]");
    await expect(encode([[1]], 1)).rejects.toThrow("text encoder: expected 0 to 0, got 1");
    const args = { sample: wave([2, 4, 8, 8]), timesteps: [1], encoderHiddenStates: wave([2, 3, 24]) };
    await expect(model.predict(args)).rejects.toThrow("feed at timesteps: expected 2, one per item, got 1");
    await expect(model.predict({ ...args, timesteps: [1, 2], encoderHiddenStates: wave([2, 3, 25]) })).rejects.toThrow(
      "feed at encoder_hidden_states: expected [B, L, 24] = [2,3,24], got [2,3,25]",
    );
  });
});

test("fp32 weights used in place give the numbers of their widened halves; a released model says so", async () => {
  const folder = copyModel();
  for (const name of ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"])
    widenWeights(join(folder, `${name}.safetensors`));
  const [half, float] = [await load(goldenModel), await load(folder)];
  const args = { sample: wave([1, 4, 6, 6]), timesteps: [10], encoderHiddenStates: wave([1, 5, 24]) };
  expect(await float.predict(args)).toEqual(await half.predict(args));
  await Promise.all([half.release(), float.release()]);
  await expect(float.predict(args)).rejects.toThrow("in use, got one that was released");
});

describe("parts", () => {
  test("time features: sine and cosine halves in either order, frequencies from 1 down to 1/10000", () => {
    const flipped = timestepFeatures([2, 0], 4, { flipSinToCos: true, shift: 0 });
    const [slow, close] = [2 / 100, 6];
    [Math.cos(2), Math.cos(slow), Math.sin(2), Math.sin(slow)].forEach((value, i) => {
      expect(flipped[i]).toBeCloseTo(value, close);
    });
    expect([...flipped.slice(4)]).toEqual([1, 1, 0, 0]);
    const shifted = timestepFeatures([2], 4, { flipSinToCos: false, shift: 1 });
    [Math.sin(2), Math.sin(2 / 10000), Math.cos(2), 1].forEach((value, i) => {
      expect(shifted[i]).toBeCloseTo(value, close);
    });
  });

  test("pooling: the first end-of-text, or the largest id where the config names the old one", () => {
    const at = (ids: number[], eosTokenId: number) => poolingPosition(ids, { eosTokenId, vocabularySize: 20 });
    expect(at([5, 9, 7, 9, 12], 9)).toBe(1);
    expect(at([5, 9, 7, 9, 12], 2)).toBe(4);
    expect(at([5, 9, 9], 2)).toBe(1);
    expect(at([5, 30, 9], 2)).toBe(2);
    expect(at([5, 9], 100)).toBe(0);
  });
});

/** Graphs of the reference model over weights that lie nowhere. */
function census(build: (weights: WeightSource) => Graph): Record<string, number> {
  const weights: WeightSource = {
    take: (key, shape) => ({ key, shape, file: "w", offset: 0, byteLength: 4 * shape.reduce((a, b) => a * b, 1) }),
  };
  return Object.fromEntries([...emit(build(weights), emitterFor("cpu")).census].sort());
}

test("census of ONNX ops on the CPU: every layer is the fused op that it is meant to be", () => {
  const { unet, vae, textEncoders } = openModel(goldenModel);
  const unetOps = census(weights => buildUnet(unet, weights));
  // 4 down, 2 mid and 8 up residual blocks; 3 + 1 + 6 transformers of one block.
  const [resnets, transformers] = [14, 10];
  // Where a block changes the width: once on the way down, and at every skip on the way up.
  const shortcuts = 1 + 8;
  expect(unetOps).toMatchObject({
    Conv: 2 + 3 + 3 + resnets * 2 + shortcuts,
    InstanceNormalization: resnets * 2 + transformers + 1,
    LayerNormalization: transformers * 3,
    "com.microsoft:MultiHeadAttention": transformers * 2,
    "com.microsoft:FusedMatMul": transformers * 6,
    "com.microsoft:Gelu": transformers,
    "com.microsoft:QuickGelu": resnets * 2 + 3,
    Resize: 3,
  });
  for (const counts of [
    unetOps,
    census(w => buildVaeEncoder(vae, w)),
    census(w => buildVaeDecoder(vae, w)),
    census(w => buildTextEncoder(textEncoders[0]!.config, w)),
  ])
    for (const op of ["Shape", "Cast", "Gather", "MatMul", "Softmax", "Sigmoid", "Erf", "Expand"]) expect(counts).not.toHaveProperty(op);
});
