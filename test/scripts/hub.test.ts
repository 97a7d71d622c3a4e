import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { downloadModel, filesOf, HubError, parseHubId } from "../../scripts/hub.ts";
import { temporaryFolder } from "../gpu-runner/support/temporary.ts";
import { commit, startHub } from "./fake-hub.ts";

const weights = Buffer.from(Uint8Array.from({ length: 3_000_000 }, (_, i) => (i * 7919) % 251));
const folderFiles = {
  "model_index.json": Buffer.from("{}"),
  "unet/config.json": Buffer.from('{"a":1}'),
  "unet/diffusion_pytorch_model.safetensors": weights,
  "unet/diffusion_pytorch_model.fp16.safetensors": Buffer.from("half"),
  "safety_checker/model.safetensors": Buffer.from("not wanted"),
  "unet/diffusion_pytorch_model.bin": Buffer.from("pickle"),
};
const model = { repository: "some/model", revision: "main", file: null };

test.each([
  ["runwayml/stable-diffusion-v1-5", { repository: "runwayml/stable-diffusion-v1-5", revision: "main", file: null }],
  ["a/b@v2.0", { repository: "a/b", revision: "v2.0", file: null }],
  ["a/b:sd_xl_base_1.0.safetensors", { repository: "a/b", revision: "main", file: "sd_xl_base_1.0.safetensors" }],
  ["./a/b", undefined],
  ["/a/b", undefined],
  ["pocket", undefined],
  ["a/b:model.ckpt", undefined],
])("%s as a hub id", (text, expected) => expect(parseHubId(text)).toEqual(expected));

test("a diffusers folder is downloaded without what draws nothing, and a second time not at all", async () => {
  const hub = await startHub(folderFiles);
  const folder = temporaryFolder();
  const progress: number[] = [];
  const path = await downloadModel(model, { folder, hubUrl: hub.url, onProgress: (done, total) => progress.push(done / total) });
  expect(path).toBe(join(folder, "some--model", commit));
  expect(readFileSync(join(path, "unet/diffusion_pytorch_model.safetensors")).equals(weights)).toBe(true);
  expect(readFileSync(join(path, "unet/config.json"), "utf8")).toBe('{"a":1}');
  for (const name of ["safety_checker", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors"])
    expect(existsSync(join(path, name))).toBe(false);
  expect(progress.at(-1)).toBe(1);
  expect(progress).toEqual([...progress].sort((a, b) => a - b));
  const requests = hub.ranges.length;
  await downloadModel(model, { folder, hubUrl: hub.url });
  expect(hub.ranges).toHaveLength(requests);
});

test("a connection that breaks twice is taken up where it broke", async () => {
  const hub = await startHub(folderFiles, [1_000_000, 1_500_000]);
  const folder = temporaryFolder();
  const path = await downloadModel(model, { folder, hubUrl: hub.url, retryMs: 1 });
  expect(readFileSync(join(path, "unet/diffusion_pytorch_model.safetensors")).equals(weights)).toBe(true);
  const ofWeights = hub.ranges.filter(range => range.endsWith("-2999999"));
  expect(ofWeights).toHaveLength(2);
  expect(Number(/=(\d+)/.exec(ofWeights[0]!)![1])).toBeGreaterThan(0);
  expect(Number(/=(\d+)/.exec(ofWeights[1]!)![1])).toBeGreaterThan(Number(/=(\d+)/.exec(ofWeights[0]!)![1]));
});

test("a download that was killed goes on from the file that it left", async () => {
  const hub = await startHub(folderFiles);
  const folder = temporaryFolder();
  const partial = join(folder, "some--model", commit, "unet/diffusion_pytorch_model.safetensors.incomplete");
  mkdirSync(dirname(partial), { recursive: true });
  writeFileSync(partial, weights.subarray(0, 2_000_000));
  const path = await downloadModel(model, { folder, hubUrl: hub.url });
  expect(readFileSync(join(path, "unet/diffusion_pytorch_model.safetensors")).equals(weights)).toBe(true);
  expect(hub.ranges).toContain("bytes=2000000-2999999");
});

test("content of another hash is not kept", async () => {
  const hub = await startHub(folderFiles, [], Buffer.alloc(weights.length, 7));
  const folder = temporaryFolder();
  await expect(downloadModel(model, { folder, hubUrl: hub.url, retryMs: 1 })).rejects.toThrow(
    "unet/diffusion_pytorch_model.safetensors: the content does not have the hash that some/model names",
  );
  expect(existsSync(join(folder, "some--model", commit, "unet/diffusion_pytorch_model.safetensors"))).toBe(false);
});

test("a repository that is not there is named in one sentence", async () => {
  const hub = await startHub(folderFiles);
  const missing = downloadModel({ ...model, repository: "no/body" }, { folder: temporaryFolder(), hubUrl: hub.url });
  await expect(missing).rejects.toThrow("there is no such repository, revision or file");
  await expect(missing).rejects.toBeInstanceOf(HubError);
});

describe("which files", () => {
  const entries = (...paths: string[]) => paths.map(path => ({ type: "file" as const, path, size: 1 }));
  const chosen = (paths: string[], fp16 = false, file: string | null = null) =>
    filesOf({ ...model, file }, entries(...paths), fp16).map(({ path }) => path);

  test("half precision where it is asked for, or where there is nothing else", () => {
    const both = ["model_index.json", "vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"];
    expect(chosen(both)).toEqual([both[0], both[1]]);
    expect(chosen(both, true)).toEqual([both[0], both[2]]);
    expect(chosen([both[0]!, both[2]!])).toEqual([both[0], both[2]]);
  });

  test("shards with their index", () => {
    const shards = ["unet/model.safetensors.index.json", "unet/model-00001-of-00002.safetensors", "unet/model-00002-of-00002.safetensors"];
    expect(chosen(["model_index.json", ...shards, "unet/model.fp16.safetensors"])).toEqual(["model_index.json", ...shards]);
  });

  test("the one file of a repository, or the one that is named", () => {
    expect(chosen(["README.md", "dream.safetensors"])).toEqual(["dream.safetensors"]);
    expect(() => chosen(["a.safetensors", "b.safetensors"])).toThrow("ask for some/model:a.safetensors or some/model:b.safetensors");
    expect(chosen(["a.safetensors", "b.safetensors"], false, "b.safetensors")).toEqual(["b.safetensors"]);
    expect(() => chosen(["a.safetensors"], false, "c.safetensors")).toThrow("has no file c.safetensors; it has a.safetensors");
  });

  test("never one whose path leads out of the folder", () => {
    expect(chosen(["model_index.json", "unet/../../x.json", "unet/config.json"])).toEqual(["model_index.json", "unet/config.json"]);
  });
});
