/** Where the weights of an adapter are found, and what stands beside them. */
import { copyFileSync, cpSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { findAdapterFiles } from "../../../gpu-runner/adapters/adapter-files.ts";
import { AdapterWeights } from "../../../gpu-runner/adapters/adapter-weights.ts";
import { openImageEncoder } from "../../../gpu-runner/adapters/ip-adapter/image-encoder.ts";
import { wave } from "../support/graph.ts";
import { editWeights, goldens } from "../support/model-folder.ts";
import { temporaryFolder } from "../support/temporary.ts";

const adapters = join(goldens, "../image-adapters/models");

test("of several weights in a folder the safetensors come first, then shards, then half precision, then old pickles", () => {
  const folder = temporaryFolder();
  const found = (): string[] => findAdapterFiles(folder, ["ControlNetModel"]).weights.map(file => file.slice(folder.length + 1));
  expect(found).toThrow("weights: expected diffusion_pytorch_model.safetensors or .bin");
  writeFileSync(join(folder, "diffusion_pytorch_model.bin"), "");
  expect(found()).toEqual(["diffusion_pytorch_model.bin"]);
  writeFileSync(join(folder, "diffusion_pytorch_model.fp16.safetensors"), "");
  expect(found()).toEqual(["diffusion_pytorch_model.fp16.safetensors"]);
  const index = join(folder, "diffusion_pytorch_model.safetensors.index.json");
  writeFileSync(index, JSON.stringify({ weight_map: { a: "2.safetensors", b: "1.safetensors", c: "2.safetensors" } }));
  writeFileSync(join(folder, "1.safetensors"), "");
  expect(found).toThrow("2.safetensors: expected a shard beside this file, got none");
  writeFileSync(join(folder, "2.safetensors"), "");
  expect(found()).toEqual(["1.safetensors", "2.safetensors"]);
  writeFileSync(index, JSON.stringify({ weight_map: { a: "../outside.safetensors" } }));
  expect(found).toThrow('weight_map.a: expected a .safetensors file beside this one, got "../outside.safetensors"');
  writeFileSync(join(folder, "diffusion_pytorch_model.safetensors"), "");
  expect(found()).toEqual(["diffusion_pytorch_model.safetensors"]);
});

test("a config beside one file counts if it is of the kind; a folder's own has to be", () => {
  const folder = temporaryFolder();
  const file = join(folder, "net.safetensors");
  writeFileSync(file, "");
  expect(findAdapterFiles(file, ["T2IAdapter"]).config).toBeNull();
  writeFileSync(join(folder, "config.json"), JSON.stringify({ _class_name: "T2IAdapter", channels: [1] }));
  expect(findAdapterFiles(file, ["T2IAdapter"]).config?.json).toEqual({ _class_name: "T2IAdapter", channels: [1] });
  expect(findAdapterFiles(file, ["ControlNetModel"]).config).toBeNull();
  writeFileSync(join(folder, "model.safetensors"), "");
  expect(() => findAdapterFiles(folder, ["ControlNetModel"])).toThrow("_class_name: expected ControlNetModel, got T2IAdapter");
  expect(() => findAdapterFiles(join(folder, "none"), [])).toThrow("file: expected a file or folder, got none");
});

test("files are read by their content: names need not tell", async () => {
  const folder = temporaryFolder();
  const names = ["ip-base.safetensors", "ip-base.bin"];
  const keys = [];
  for (const [i, name] of names.entries()) {
    const path = join(folder, String(i));
    copyFileSync(join(adapters, name), path);
    const weights = await AdapterWeights.open(path, [path], { cacheDir: folder });
    keys.push([...weights.keys()].sort());
    expect(weights.shape("image_proj.proj.weight", 2)).toEqual([96, 20]);
  }
  expect(keys[0]).toEqual(keys[1]);
  writeFileSync(join(folder, "broken"), "neither");
  await expect(AdapterWeights.open(folder, [join(folder, "broken")], { cacheDir: folder })).rejects.toThrow(
    "expected at least 10 bytes, got 7 bytes",
  );
});

test("an image encoder whose keys lack the prefix is the same", async () => {
  const folder = join(temporaryFolder(), "encoder");
  mkdirSync(folder);
  cpSync(join(adapters, "image_encoder"), folder, { recursive: true });
  editWeights(join(folder, "model.safetensors"), tensors =>
    tensors.map(tensor => ({ ...tensor, name: tensor.name.replace("vision_model.", "") })),
  );
  const options = { provider: "cpu", cacheDir: temporaryFolder(), threads: 1 } as const;
  const [plain, renamed] = [await openImageEncoder(join(adapters, "image_encoder"), options), await openImageEncoder(folder, options)];
  const pixels = wave([2, 3, 30, 30]);
  expect(await renamed.encode(pixels)).toEqual(await plain.encode(pixels));
  await Promise.all([plain.release(), renamed.release()]);
  rmSync(join(folder, "config.json"));
  await expect(openImageEncoder(folder, options)).rejects.toThrow("config.json: expected the config of a CLIP vision model, got none");
});
