/** What ONNX Runtime makes of an emitted graph: the fast layouts that the emitter counts on. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fromBinary } from "@bufbuild/protobuf";
import { InferenceSession } from "onnxruntime-node";
import { expect, test } from "vitest";
import { emit, emitterFor } from "../../../../gpu-runner/graph/emitter.ts";
import type { OnnxModel } from "../../../../gpu-runner/graph/onnx.ts";
import { ModelProtoSchema } from "../../../../gpu-runner/graph/onnx_pb.js";
import { buildUnet } from "../../../../gpu-runner/models/unet.ts";
import { readUnetConfig } from "../../../../gpu-runner/weights/configs.ts";
import { linkIntoFolder } from "../../../../gpu-runner/weights/placement.ts";
import { writeRandomWeights } from "../../../../gpu-runner/weights/random-weights.ts";
import { weightsOfFile } from "../../../../gpu-runner/weights/weights.ts";
import { temporaryFolder } from "../../support/temporary.ts";

/** Count of ops, "domain:op" outside ai.onnx, of the model as optimised for this machine. */
async function optimisedCensus(model: OnnxModel): Promise<Record<string, number>> {
  const { folder, names } = linkIntoFolder(model.files, temporaryFolder());
  const [file, optimised] = [join(folder, "model.onnx"), join(folder, "optimised.onnx")];
  writeFileSync(file, model.bytes(names));
  const session = await InferenceSession.create(file, {
    graphOptimizationLevel: "all",
    optimizedModelFilePath: optimised,
    logSeverityLevel: 3,
  });
  await session.release();
  const nodes = fromBinary(ModelProtoSchema, readFileSync(optimised)).graph?.node ?? [];
  const counts: Record<string, number> = {};
  for (const { domain, opType } of nodes) {
    const op = domain ? `${domain}:${opType}` : opType;
    counts[op] = (counts[op] ?? 0) + 1;
  }
  return counts;
}

// Blocked layouts exist where the processor has AVX, which every x64 machine of use here has.
test.runIf(process.arch === "x64")("every convolution is in the blocked layout, and fused ops stay fused", async () => {
  const folder = temporaryFolder();
  writeFileSync(
    join(folder, "config.json"),
    JSON.stringify({ block_out_channels: [32, 64, 64, 64], layers_per_block: 1, cross_attention_dim: 32 }),
  );
  const config = readUnetConfig(join(folder, "config.json"));
  writeRandomWeights(join(folder, "weights.safetensors"), weights => buildUnet(config, weights));
  const model = emit(buildUnet(config, weightsOfFile(join(folder, "weights.safetensors"))), emitterFor("cpu"));
  const before = Object.fromEntries(model.census);
  const after = await optimisedCensus(model);
  expect(after["com.microsoft.nchwc:Conv"]).toBe(before.Conv);
  for (const op of ["com.microsoft:MultiHeadAttention", "com.microsoft:QuickGelu", "com.microsoft:Gelu", "InstanceNormalization", "Resize"])
    expect(after[op], op).toBe(before[op]);
  for (const op of ["Conv", "MatMul", "Shape", "Cast"]) expect(after).not.toHaveProperty(op);
});
