/** Features of T2I-Adapters, and what is refused. */
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { sumFeatures } from "../../../gpu-runner/adapters/t2i-adapter/features.ts";
import { openT2iAdapter, unshuffle } from "../../../gpu-runner/adapters/t2i-adapter/t2i-adapter.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { tensor } from "../support/graph.ts";
import { goldens } from "../support/model-folder.ts";
import { temporaryFolder } from "../support/temporary.ts";

const adapters = join(goldens, "../image-adapters/models");

test("squares of pixels become channels: row by row within each channel", () => {
  const picture = tensor([1, 2, 2, 4], i => i);
  expect(unshuffle(picture, 2)).toEqual({
    data: Float32Array.of(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15),
    shape: [1, 8, 1, 2],
  });
});

describe("features", () => {
  const ones = tensor([2, 1, 1, 2], () => 1);

  test("are summed with a weight per adapter and item", () => {
    const sum = sumFeatures([
      { features: [ones], weights: [1, 0] },
      { features: [ones], weights: [0.5, 0.25] },
    ]);
    expect(sum).toEqual([{ data: Float32Array.of(1.5, 1.5, 0.25, 0.25), shape: [2, 1, 1, 2] }]);
    expect(sumFeatures([])).toEqual([]);
  });

  test("of adapters with other levels are refused", () => {
    expect(() =>
      sumFeatures([
        { features: [ones], weights: [1, 1] },
        { features: [], weights: [1, 1] },
      ]),
    ).toThrow("expected [2,1,1,2] and a weight per item, got [none]");
  });
});

test("an adapter says which base and which size it cannot take", async () => {
  const options = { provider: "cpu", cacheDir: temporaryFolder(), threads: 1 } as const;
  const [sd15, sdxl] = await Promise.all(["sd15", "sdxl"].map(name => loadDiffusionModel(join(goldens, "models", name), options)));
  await expect(openT2iAdapter(join(adapters, "t2i-light"), sdxl!.unet, options)).rejects.toThrow(
    "channels: expected [8,8,12,12] as the base's levels have, got [8,8,16,16]",
  );
  await expect(openT2iAdapter(join(adapters, "ip-base.safetensors"), sd15!.unet, options)).rejects.toThrow(
    "body.0: expected the blocks of a T2I-Adapter, got none",
  );
  const adapter = await openT2iAdapter(join(adapters, "t2i-light"), sd15!.unet, options);
  await expect(adapter.features(tensor([1, 3, 20, 16], () => 0))).rejects.toThrow("expected height and width that 8 divides, got 20 x 16");
  expect((await adapter.features(tensor([1, 3, 40, 24], () => 0.5))).map(({ shape }) => shape)).toEqual([
    [1, 8, 5, 3],
    [1, 8, 3, 2],
    [1, 16, 2, 1],
    [1, 16, 1, 1],
  ]);
  await Promise.all([adapter.release(), sd15!.release(), sdxl!.release()]);
});
