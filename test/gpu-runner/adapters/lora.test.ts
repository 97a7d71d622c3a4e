import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { LoraAdapter, WeightShapes } from "../../../gpu-runner/adapters/adapter.ts";
import { adapterDiskFiles } from "../../../gpu-runner/adapters/content-hash.ts";
import { openLora } from "../../../gpu-runner/adapters/lora/lora.ts";
import { moduleAliases } from "../../../gpu-runner/adapters/lora/module-names.ts";
import { withAutoencoder } from "../../../gpu-runner/verify/substitute-autoencoder.ts";
import { levelsOfModules, originalModule, originalUnetBlocks } from "../../../gpu-runner/weights/original-unet.ts";
import { withSafetensors } from "../../../gpu-runner/weights/safetensors.ts";
import { bytesOf, type TensorToWrite, writeSafetensors } from "../../../gpu-runner/weights/safetensors-write.ts";
import { baseShapes } from "../fuzz/load.ts";

const goldens = join(import.meta.dirname, "../../goldens/adapters");
const hash = `sha256:${"0".repeat(64)}`;
let scratch: string;
let sd15: WeightShapes;
let sdxl: WeightShapes;

beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), "atelier-lora-test-"));
  sd15 = baseShapes(join(goldens, "models/sd15"));
  sdxl = baseShapes(withAutoencoder(join(goldens, "models/sdxl"), scratch));
});
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const open = (path: string, shapes: WeightShapes) => openLora(adapterDiskFiles(path), hash, shapes);

/** A copy of a golden file under other keys. */
function renamed(file: string, rename: (key: string) => string): string {
  const path = join(scratch, `${Math.random().toString(36).slice(2)}.safetensors`);
  withSafetensors(join(goldens, "adapters/lora", file), source => {
    const tensors = [...source.entries.values()].map(
      ({ name, dtype, shape }): TensorToWrite => ({ name: rename(name), dtype, shape, data: () => [source.readBytes(name)] }),
    );
    writeSafetensors(path, tensors);
  });
  return path;
}

function written(tensors: Record<string, { shape: number[]; data: number[] }>, metadata?: Record<string, string>): string {
  const path = join(scratch, `${Math.random().toString(36).slice(2)}.safetensors`);
  const list = Object.entries(tensors).map(
    ([name, { shape, data }]): TensorToWrite => ({ name, dtype: "F32", shape, data: () => [bytesOf(Float32Array.from(data))] }),
  );
  writeSafetensors(path, list, metadata ? { metadata } : {});
  return path;
}

/** What the changes are, in an order of its own. */
function summary({ changes }: LoraAdapter) {
  return changes
    .map(({ component, name, lowRank }) => ({ component, name, lowRank }))
    .sort((a, b) => (a.name + a.component < b.name + b.component ? -1 : 1));
}

describe("namings of one base's modules", () => {
  /** Every name that a module of the base has, from its name in diffusers. */
  const dotted = (shapes: WeightShapes, key: string): { component: string; name: string; suffix: string } => {
    const dot = key.indexOf(".");
    const { component, name } = moduleAliases(shapes).get(key.slice(0, dot))!;
    return { component, name, suffix: key.slice(dot) };
  };

  it("SDXL: kohya's original names, diffusers' blocks, OneTrainer's dots, ComfyUI's and diffusers' prefixes mean the same", async () => {
    const reference = summary(await open(join(goldens, "adapters/lora/sdxl-kohya.safetensors"), sdxl));
    const unet = [...sdxl.unet!.keys()].filter(name => name.endsWith(".weight")).map(name => name.slice(0, -7));
    const blocks = originalUnetBlocks(levelsOfModules(unet));
    const texts = { textEncoder: "lora_te1", textEncoder2: "lora_te2" } as Record<string, string>;
    const rename = (naming: (component: string, name: string) => string) => (key: string) => {
      const { component, name, suffix } = dotted(sdxl, key);
      return naming(component, name) + suffix;
    };
    const inner = (name: string) => (name === "text_projection" ? name : `text_model.${name}`);
    const namings = {
      "diffusers' blocks": (c: string, n: string) => (c === "unet" ? `lora_unet_${n}` : `${texts[c]}_${inner(n)}`).replaceAll(".", "_"),
      "OneTrainer's dots": (c: string, n: string) => (c === "unet" ? `lora_unet.${n}` : `${texts[c]}.${inner(n)}`),
      ComfyUI: (c: string, n: string) =>
        c === "unet"
          ? `diffusion_model.${originalModule(n, blocks)}`
          : `text_encoders.clip_${c === "textEncoder" ? "l" : "g"}.transformer.${inner(n)}`,
      diffusers: (c: string, n: string) => (c === "unet" ? `unet.${n}` : `text_encoder${c === "textEncoder" ? "" : "_2"}.${inner(n)}`),
    };
    expect(reference.length).toBe(279);
    for (const naming of Object.values(namings))
      expect(summary(await open(renamed("sdxl-kohya.safetensors", rename(naming)), sdxl))).toEqual(reference);
  });

  it("numbers the original blocks of SD 1 as the release does", () => {
    const levels = [0, 1, 2, 3];
    const names = [
      "conv_in",
      ...levels.flatMap(i => [0, 1].map(j => `down_blocks.${i}.resnets.${j}.conv1`)),
      ...[0, 1, 2].flatMap(i => [0, 1].map(j => `down_blocks.${i}.attentions.${j}.proj_in`)),
      ...[0, 1, 2].map(i => `down_blocks.${i}.downsamplers.0.conv`),
      ...levels.flatMap(i => [0, 1, 2].map(j => `up_blocks.${i}.resnets.${j}.conv1`)),
      ...[1, 2, 3].flatMap(i => [0, 1, 2].map(j => `up_blocks.${i}.attentions.${j}.proj_in`)),
      ...[0, 1, 2].map(i => `up_blocks.${i}.upsamplers.0.conv`),
    ];
    const blocks = originalUnetBlocks(levelsOfModules(names));
    const original = new Map(names.flatMap(name => [[name, originalModule(name, blocks)] as const].filter(([, found]) => found)));
    expect(original.get("down_blocks.2.attentions.1.proj_in")).toBe("input_blocks.8.1.proj_in");
    expect(original.get("down_blocks.2.downsamplers.0.conv")).toBe("input_blocks.9.0.op");
    expect(original.get("up_blocks.0.upsamplers.0.conv")).toBe("output_blocks.2.1.conv");
    expect(original.get("up_blocks.1.upsamplers.0.conv")).toBe("output_blocks.5.2.conv");
    expect(original.get("up_blocks.3.attentions.2.proj_in")).toBe("output_blocks.11.1.proj_in");
    expect(new Set(original.values()).size).toBe(names.length);
    expect(originalModule("up_blocks.0.resnets.0.nonsense", blocks)).toBeUndefined();
  });
});

const module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";

describe("algorithms by their formula", () => {
  it("(IA)3 scales rows, or columns where it says so", async () => {
    const [out] = sd15.unet!.get("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight")!;
    const scales = Array.from({ length: out! }, (_, i) => i / 8);
    for (const onInput of [0, 1]) {
      const path = written({
        [`${module}.weight`]: { shape: [out!], data: scales },
        [`${module}.on_input`]: { shape: [], data: [onInput] },
      });
      const { changes } = await open(path, sd15);
      const base = Float32Array.from({ length: out! * out! }, (_, i) => i % 7);
      const want = base.map((value, i) => value + 0.5 * value * scales[onInput ? i % out! : Math.floor(i / out!)]!);
      expect(changes[0]!.merge(base, 0.5, null)).toEqual(want);
    }
  });

  it("reads a DoRA at its file's origin: kohya's goes part of the way, peft's stays on the magnitude", async () => {
    const kohya = (await open(join(goldens, "adapters/lora/dora.safetensors"), sd15)).changes[0]!;
    const base = Float32Array.from({ length: kohya.shape.reduce((a, b) => a * b, 1) }, (_, i) => Math.sin(i + 1));
    const full = kohya.merge(base, 1, null);
    kohya.merge(base, 0.25, null).forEach((value, i) => {
      expect(value).toBeCloseTo(base[i]! + 0.25 * (full[i]! - base[i]!), 5);
    });
    const columns = kohya.shape.slice(1).reduce((a, b) => a * b, 1);
    const norm = (values: Float32Array) => Math.hypot(...values.subarray(0, columns));
    expect(norm(kohya.merge(base, 0.25, "peft"))).toBeCloseTo(norm(full), 4);
  });

  it("reports every key", async () => {
    const { report } = await open(join(goldens, "adapters/lora/kohya.safetensors"), sd15);
    expect(report.used).toHaveLength(387);
    expect(report).toMatchObject({ layout: "kohya/lora", skipped: [] });
  });
});

describe("inversions that are bundled with a LoRA", () => {
  it("come by their words, with rows for both encoders; rows for a result are told as skipped", async () => {
    const rows = (width: number) => ({ shape: [2, width], data: Array.from({ length: 2 * width }, (_, i) => i) });
    const path = renamed("sdxl-kohya.safetensors", key => key);
    const tensors = {
      "bundle_emb.my.cat.clip_l": rows(20),
      "bundle_emb.my.cat.clip_g": rows(28),
      "bundle_emb.my.cat.clip_l_out": rows(20),
    };
    const both = withSafetensors(path, source =>
      Object.fromEntries(
        [...source.entries.values()].map(({ name, shape }) => [name, { shape: [...shape], data: Array.from(source.readFloat32(name)) }]),
      ),
    );
    const { bundled, changes } = await open(written({ ...both, ...tensors }), sdxl);
    expect(changes).toHaveLength(279);
    expect(bundled).toHaveLength(1);
    expect(bundled[0]!.token).toBe("my.cat");
    expect(bundled[0]!.vectors.map(vector => vector?.shape)).toEqual([
      [2, 20],
      [2, 28],
    ]);
    expect(bundled[0]!.report.skipped.map(({ key }) => key)).toEqual(["clip_l_out"]);
  });
});

describe("refusals name the key", () => {
  const pair = (out: number, width: number, rank = 2) => ({
    [`${module}.lora_down.weight`]: { shape: [rank, width], data: Array<number>(rank * width).fill(0.1) },
    [`${module}.lora_up.weight`]: { shape: [out, rank], data: Array<number>(out * rank).fill(0.1) },
  });

  it.each([
    [
      "a key of no method",
      { "lora_unet_conv_in.lora_sideways": { shape: [1], data: [1] } },
      /conv_in\.lora_sideways: expected a part of a LoRA/,
    ],
    [
      "a module that the base lacks",
      { "lora_unet_mid_block_nowhere.alpha": { shape: [], data: [1] } },
      /mid_block_nowhere\.alpha: expected a module of the base/,
    ],
    ["OFT", { "lora_unet_conv_in.oft_blocks": { shape: [1], data: [1] } }, /oft_blocks: expected a method that is served, got OFT/],
    ["another width", pair(32, 768), /to_q\.lora_down\.weight: expected \[2, 32\], got \[2,768\]/],
    ["a half", { [`${module}.lora_down.weight`]: { shape: [2, 32], data: Array<number>(64).fill(0) } }, /expected a tensor "up" beside/],
    [
      "an alpha that is no number",
      { ...pair(32, 32), [`${module}.alpha`]: { shape: [], data: [Number.NaN] } },
      /to_q\.alpha: expected one finite number/,
    ],
  ] as [string, Record<string, { shape: number[]; data: number[] }>, RegExp][])("%s", async (_, tensors, message) => {
    await expect(open(written(tensors), sd15)).rejects.toThrow(message);
  });

  it("an expression in peft's patterns, which could run forever", async () => {
    const metadata = {
      lora_adapter_metadata: JSON.stringify({ "unet.r": 2, "unet.lora_alpha": 2, "unet.rank_pattern": { "((a+)+)+$": 2 } }),
    };
    await expect(open(written(pair(32, 32), metadata), sd15)).rejects.toThrow("a module's name or its end, got a regular expression");
  });
});
