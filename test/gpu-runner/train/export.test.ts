import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { openAdapter } from "../../../gpu-runner/adapters/registry.ts";
import type { DiffusionModel } from "../../../gpu-runner/components.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { extractLora, writeFullDifference } from "../../../gpu-runner/train/export/dreambooth.ts";
import { loraLayouts } from "../../../gpu-runner/train/export/lora.ts";
import { lowRankFactors } from "../../../gpu-runner/train/export/low-rank.ts";
import type { ResultTensor } from "../../../gpu-runner/train/export/result.ts";
import { writeInversion } from "../../../gpu-runner/train/export/textual-inversion.ts";
import { normals } from "../../../gpu-runner/train/random.ts";
import { goldenModel } from "../support/model-folder.ts";
import { temporaryFolder } from "../support/temporary.ts";

let model: DiffusionModel;
beforeAll(async () => {
  const cacheDir = mkdtempSync(join(tmpdir(), "atelier-test-"));
  model = await loadDiffusionModel(goldenModel, { provider: "cpu", cacheDir });
  return async () => {
    await model.release();
    rmSync(cacheDir, { recursive: true, force: true });
  };
});

const open = (path: string) =>
  openAdapter("lora", { hash: `sha256:${"0".repeat(64)}`, path, base: model, options: { provider: "cpu", cacheDir: temporaryFolder() } });

let draws = 0n;
const random = (name: string, shape: readonly number[]): ResultTensor => ({
  name,
  shape,
  data: normals(
    ++draws,
    shape.reduce((a, b) => a * b, 1),
  ),
});

/** Pairs of rank 3 for attentions, a convolution and the text encoder. */
function pairs(dora: boolean): ResultTensor[] {
  const wanted = /attn[12]\.to_(q|out\.0)\.weight$|resnets\.0\.conv1\.weight$|self_attn\.q_proj\.weight$/;
  return [...model.weightShapes.unet!, ...model.weightShapes.textEncoder!].flatMap(([name, [out = 1, inputs = 1, ...kernel]]) => {
    if (!wanted.test(name)) return [];
    const module = `${name.includes("self_attn") ? "text_encoder" : "unet"}.${name.slice(0, -".weight".length)}`;
    return [
      random(`${module}.lora_A.weight`, [3, inputs, ...kernel]),
      random(`${module}.lora_B.weight`, kernel.length > 0 ? [out, 3, 1, 1] : [out, 3]),
      ...(dora ? [random(`${module}.lora_magnitude_vector.weight`, [out])] : []),
    ];
  });
}

test.each([false, true])(
  "every layout of a LoRA (DoRA: %s) comes back as the same changes through the product's own reader",
  async dora => {
    const folder = temporaryFolder();
    const result = { tensors: pairs(dora), rank: 3, alpha: 1.5, hasTwoTextEncoders: false, metadata: { ss_steps: "8" } };
    expect(result.tensors.length).toBeGreaterThan(10);
    loraLayouts.kohya(folder, result);
    loraLayouts.diffusers(folder, result);
    loraLayouts.peft(folder, result);
    const [kohya, diffusers, peft] = [
      await open(join(folder, "kohya/lora.safetensors")),
      await open(join(folder, "diffusers/pytorch_lora_weights.safetensors")),
      await open(join(folder, "peft/unet")),
    ];
    const merged = (adapter: typeof kohya, component?: "unet") =>
      adapter.changes
        .filter(change => component === undefined || change.component === component)
        .map(({ component: part, name, shape, merge }) => {
          const base = new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(0.01);
          return [`${part}/${name}`, merge(base, 1, null)] as const;
        })
        .sort(([a], [b]) => (a < b ? -1 : 1));
    expect(kohya.changes).toHaveLength(result.tensors.length / (dora ? 3 : 2));
    expect(merged(diffusers)).toEqual(merged(kohya));
    expect(merged(peft)).toEqual(merged(kohya, "unet"));
    const pair = kohya.changes.find(({ lowRank }) => lowRank !== null);
    if (!dora) expect(pair!.lowRank).toMatchObject({ rank: 3, scale: 0.5 });
  },
);

test("a full difference comes back as the trained weights, norms and biases among them", async () => {
  const folder = temporaryFolder();
  const names = [...model.weightShapes.unet!].slice(0, 40).map(([name, shape]) => [`unet.${name}`, shape] as const);
  const base = new Map<string, Float32Array>(names.map(([name, shape]) => [name, random(name, shape).data]));
  const trained = names.map(([name, shape]) => random(name, shape));
  writeFullDifference(folder, { trained, base: name => base.get(name)!, hasTwoTextEncoders: false, metadata: {} });
  const { changes } = await open(join(folder, "lycoris/full.safetensors"));
  expect(changes).toHaveLength(40);
  for (const { name, merge } of changes) {
    const wanted = trained.find(tensor => tensor.name === `unet.${name}`)!;
    const got = merge(base.get(wanted.name)!, 1, null);
    for (let i = 0; i < got.length; i++) expect(Math.abs(got[i]! - wanted.data[i]!)).toBeLessThan(1e-5);
  }
});

test("a difference of low rank is extracted whole, one of full rank as far as its singular values say", async () => {
  const [m, n] = [24, 36];
  const [left, right] = [normals(1n, m * 3), normals(2n, 3 * n)];
  const product = Float32Array.from({ length: m * n }, (_, i) => {
    const [row, column] = [Math.floor(i / n), i % n];
    return [0, 1, 2].reduce((sum, k) => sum + left[row * 3 + k]! * right[k * n + column]!, 0);
  });
  const errorOf = (matrix: Float32Array, rank: number) => {
    const { up, down } = lowRankFactors(matrix, m, n, rank);
    let error = 0;
    for (let i = 0; i < m * n; i++) {
      let value = 0;
      for (let k = 0; k < rank; k++) value += up[Math.floor(i / n) * rank + k]! * down[k * n + (i % n)]!;
      error += (value - matrix[i]!) ** 2;
    }
    return Math.sqrt(error) / Math.hypot(...matrix);
  };
  expect(errorOf(product, 3)).toBeLessThan(1e-5);
  // A diagonal's best approximation is its largest entries: the error is known.
  const diagonal = new Float32Array(m * n);
  for (let i = 0; i < m; i++) diagonal[i * n + i] = 0.8 ** i;
  const squares = (from: number) => Array.from({ length: m - from }, (_, i) => 0.64 ** (i + from)).reduce((a, b) => a + b, 0);
  expect(errorOf(diagonal, 6)).toBeCloseTo(Math.sqrt(squares(6) / squares(0)), 4);
  const folder = temporaryFolder();
  const [name, shape] = [...model.weightShapes.unet!].find(([key]) => key.endsWith("attn1.to_q.weight"))!;
  const trained = [random(`unet.${name}`, shape)];
  const base = new Map([[`unet.${name}`, new Float32Array(trained[0]!.data.length)]]);
  loraLayouts.kohya(
    folder,
    extractLora({ trained, base: key => base.get(key)!, hasTwoTextEncoders: false, metadata: {} }, Math.min(...shape)),
  );
  const { changes } = await open(join(folder, "kohya/lora.safetensors"));
  const whole = changes[0]!.merge(new Float32Array(trained[0]!.data.length), 1, null);
  for (let i = 0; i < whole.length; i++) expect(Math.abs(whole[i]! - trained[0]!.data[i]!)).toBeLessThan(1e-4);
});

test("an inversion's rows come back from both layouts, with diffusers' word", async () => {
  const folder = temporaryFolder();
  const width = model.description.textEncoders[0]!.width;
  const rows = random("rows", [3, width]);
  const written = writeInversion(folder, "zxq", "<zxq>", [rows]);
  for (const [layout, [path]] of Object.entries(written)) {
    const opened = await openAdapter("textual-inversion", {
      hash: `sha256:${"0".repeat(64)}`,
      path: join(folder, path!),
      base: model,
      options: { provider: "cpu", cacheDir: folder },
    });
    expect(opened.vectors[0]!.data, layout).toEqual(rows.data);
    expect(opened.token).toBe(layout === "diffusers" ? "<zxq>" : null);
  }
});
