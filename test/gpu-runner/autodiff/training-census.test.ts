/** What ONNX Runtime's optimiser leaves of a graph with gradients: nothing merged, nothing copied, nothing that the provider lacks. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fromBinary } from "@bufbuild/protobuf";
import { InferenceSession } from "onnxruntime-node";
import { expect, test } from "vitest";
import { emit, emitterFor } from "../../../gpu-runner/graph/emitter.ts";
import type { OnnxModel } from "../../../gpu-runner/graph/onnx.ts";
import { ModelProtoSchema } from "../../../gpu-runner/graph/onnx_pb.js";
import { openings } from "../../../gpu-runner/ort-session.ts";
import { linkIntoFolder } from "../../../gpu-runner/weights/placement.ts";
import { temporaryFolder } from "../support/temporary.ts";
import { smallUnet } from "./small-unet.ts";

/** Count of ops, "domain:op" outside ai.onnx, of the model as trainings run it. */
async function optimisedCensus(model: OnnxModel): Promise<ReadonlyMap<string, number>> {
  const { folder, names } = linkIntoFolder(model.files, temporaryFolder());
  const [file, optimised] = [join(folder, "model.onnx"), join(folder, "optimised.onnx")];
  writeFileSync(file, model.bytes(names));
  const session = await InferenceSession.create(file, { ...openings.training, optimizedModelFilePath: optimised, logSeverityLevel: 3 });
  await session.release();
  const counts = new Map<string, number>();
  for (const { domain, opType } of fromBinary(ModelProtoSchema, readFileSync(optimised)).graph?.node ?? []) {
    const op = domain ? `${domain}:${opType}` : opType;
    counts.set(op, (counts.get(op) ?? 0) + 1);
  }
  return counts;
}

/** What takes the time: counted exactly. */
const costly = ["Conv", "ConvTranspose", "Gemm", "com.microsoft:FusedMatMul", "com.microsoft:MultiHeadAttention", "InstanceNormalization"];

// Pictures so small that no weight is wanted in another layout, which lies in no file before a session is made.
const side = 8;

test.each([
  { isWhole: false, recompute: false },
  { isWhole: false, recompute: true },
  { isWhole: true, recompute: false },
  { isWhole: true, recompute: true },
])("$isWhole, recomputed $recompute: the optimised model computes what was emitted", async options => {
  const emitter = emitterFor("cpu");
  const model = emit(smallUnet(temporaryFolder(), { side, ...options }), emitter);
  const after = await optimisedCensus(model);
  for (const op of costly) expect([op, after.get(op) ?? 0]).toEqual([op, model.census.get(op) ?? 0]);
  for (const op of after.keys()) expect(emitter.ops, op).toContain(op);
  for (const op of ["Shape", "Cast", "MatMul"]) expect(after.has(op), op).toBe(false);
});

test("recomputation adds products of the forward pass, and at most as many as that has", () => {
  const censuses = [false, true].map(recompute =>
    emit(smallUnet(temporaryFolder(), { side, isWhole: false, recompute }), emitterFor("cpu")),
  );
  const [kept, again] = censuses.map(({ census }) => census) as [ReadonlyMap<string, number>, ReadonlyMap<string, number>];
  // What only gradients have is not computed again, and attention is kept.
  for (const op of ["ConvTranspose", "Softmax", "ReduceSum", "com.microsoft:MultiHeadAttention"])
    expect(again.get(op), op).toBe(kept.get(op));
  for (const op of ["LayerNormalization", "InstanceNormalization"]) {
    expect(again.get(op), op).toBeGreaterThan(kept.get(op)!);
    expect(again.get(op), op).toBeLessThanOrEqual(2 * kept.get(op)!);
  }
});
