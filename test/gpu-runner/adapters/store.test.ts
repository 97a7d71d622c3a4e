import { cpSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { AdapterStore } from "../../../gpu-runner/adapters/store.ts";
import type { DiffusionModel } from "../../../gpu-runner/components.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";

const goldens = join(import.meta.dirname, "../../goldens/adapters");
const file = (name: string) => join(goldens, "adapters", name);
const hash = (digit: string) => `sha256:${digit.repeat(64)}`;
let cacheDir: string;
let model: DiffusionModel;

beforeAll(async () => {
  cacheDir = mkdtempSync(join(tmpdir(), "atelier-store-test-"));
  model = await loadDiffusionModel(join(goldens, "models/sd15"), { provider: "cpu", cacheDir });
});
afterAll(async () => {
  await model.release();
  rmSync(cacheDir, { recursive: true, force: true });
});

it("opens once, keeps the latest used within the budget, and forgets what failed", async () => {
  const [kohya, peft] = [file("lora/kohya.safetensors"), file("lora/peft")];
  const store = new AdapterStore({ provider: "cpu", cacheDir, budget: 400_000 });
  const first = await store.open("lora", hash("a"), kohya, model);
  expect(await store.open("lora", hash("a"), kohya, model)).toBe(first);
  await store.open("lora", hash("b"), peft, model);
  await store.open("textual-inversion", hash("c"), file("ti/ti-diffusers.safetensors"), model);
  await store.open("lora", hash("a"), kohya, model);
  expect(store.resident()).toEqual([hash("a"), hash("c"), hash("b")]);
  // 2 * 162,258 bytes for the first, 2 * (52,000 and its configuration) for the second: together they are too many.
  await store.trim();
  expect(store.resident()).toEqual([hash("a"), hash("c")]);
  await expect(store.open("lora", hash("d"), file("lora/sdxl-kohya.safetensors"), model)).rejects.toThrow("expected a module of the base");
  expect(store.resident()).not.toContain(hash("d"));
  await store.close();
  expect(store.resident()).toEqual([]);
});

it("takes a folder of an inversion's two files for one adapter", async () => {
  const folder = join(cacheDir, "pair");
  cpSync(file("ti/ti-sdxl-two-files.safetensors"), join(folder, "learned_embeds.safetensors"));
  cpSync(file("ti/ti-sdxl-two-files_2.safetensors"), join(folder, "learned_embeds_2.safetensors"));
  const store = new AdapterStore({ provider: "cpu", cacheDir, budget: 0 });
  // Their widths are SDXL's: this base has neither.
  await expect(store.open("textual-inversion", hash("e"), folder, model)).rejects.toThrow(
    /expected a width of the base's text encoders \(24\), got 20/,
  );
});
