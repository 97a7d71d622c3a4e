/** Keys and values of image tokens: what is computed, and when. */
import { join } from "node:path";
import { expect, test } from "vitest";
import { openIpAdapter } from "../../../gpu-runner/adapters/ip-adapter/ip-adapter.ts";
import { IpKeysValues } from "../../../gpu-runner/adapters/ip-adapter/keys-values.ts";
import { readStored } from "../../../gpu-runner/adapters/stored-tensor.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { SessionCache } from "../../../gpu-runner/session.ts";
import { wave } from "../support/graph.ts";
import { goldens } from "../support/model-folder.ts";
import { temporaryFolder } from "../support/temporary.ts";

test("each layer's are the tokens through its own matrices; equal tokens are not computed again, also in another array", async () => {
  const options = { provider: "cpu", cacheDir: temporaryFolder(), threads: 1 } as const;
  const model = await loadDiffusionModel(join(goldens, "models/sd15"), options);
  const adapter = await openIpAdapter(join(goldens, "../image-adapters/models/ip-base.safetensors"), model.unet, options);
  const keysValues = new IpKeysValues(model.unet.config, new SessionCache(), options);
  const tokens = wave([1, 2, 24]);
  const first = await keysValues.of(adapter.layers, tokens);

  // The first layer of the first level: its keys lie at the start of a row of its width's tensor.
  const { key } = adapter.layers.layers.get("down_blocks.0.attentions.0.transformer_blocks.0")!;
  const matrix = readStored(key);
  const [width, depth] = matrix.shape as [number, number];
  const packed = first[`keys_values.${width}`]!;
  for (let row = 0; row < width; row++) {
    let sum = 0;
    for (let i = 0; i < depth; i++) sum += tokens.data[i]! * matrix.data[row * depth + i]!;
    expect(packed.data[row]).toBeCloseTo(sum, 4);
  }

  expect(await keysValues.of(adapter.layers, { ...tokens, data: tokens.data.slice() })).toBe(first);
  const others = await keysValues.of(adapter.layers, wave([1, 2, 24], 1));
  expect(others).not.toEqual(first);
  expect(await keysValues.of(adapter.layers, tokens)).toBe(first);
  await Promise.all([keysValues.release(), adapter.release(), model.release()]);
});
