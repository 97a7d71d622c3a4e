import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { detectAdapter } from "../../shared/adapter-detection.ts";
import { adapterFits } from "../../shared/adapter-fit.ts";
import { bytesSource } from "../../shared/adapters/byte-source.ts";

const goldens = join(import.meta.dirname, "../goldens/adapters");

function sources(name: string) {
  const path = join(goldens, name);
  const files = statSync(path).isDirectory() ? readdirSync(path).map(file => join(path, file)) : [path];
  return files.map(file => ({ path: file.slice(file.lastIndexOf("/") + 1), source: bytesSource(readFileSync(file)) }));
}

describe("detectAdapter", () => {
  it.each([
    ["adapters/lora/kohya.safetensors", "lora", "kohya/lora", 24, [24]],
    ["adapters/lora/sdxl-kohya.safetensors", "lora", "kohya-sdxl/lora+kohya/lora", 48, [20, 28]],
    ["adapters/lora/old-diffusers-bare.safetensors", "lora", "bare/lora", 24, []],
    ["adapters/lora/dora.safetensors", "lora", "kohya/dora-lora", 24, []],
    ["adapters/lora/loha.safetensors", "lora", "kohya/loha", 24, []],
    ["adapters/lora/lokr.safetensors", "lora", "kohya/lokr", 24, []],
    ["adapters/lora/glora-old.safetensors", "lora", "kohya/glora", 24, []],
    ["adapters/lora/peft", "lora", "peft/lora", 24, []],
    ["adapters/ti/ti-a1111.pt", "textual-inversion", "a1111", null, [24]],
    ["adapters/ti/ti-sdxl.safetensors", "textual-inversion", "clip_l-clip_g", null, [20, 28]],
    ["adapters/hypernetwork/hyper-pickle.pt", "hypernetwork", "a1111", null, []],
    ["models/ip-adapter/ip-adapter-plus.safetensors", "ip-adapter", "plus", 24, []],
    ["models/controlnet-folder", "controlnet", "diffusers", 24, []],
    ["models/controlnet-original.safetensors", "controlnet", "original", 24, []],
    ["models/t2i-adapter", "t2i-adapter", "diffusers", null, []],
  ])("%s", async (name, kind, layout, width, texts) => {
    const detected = await detectAdapter(sources(name));
    expect(detected).toMatchObject({ kind, layout, cross_attention_dim: width, text_widths: texts });
    expect(detected.parameters).toBeGreaterThan(20);
  });

  it("knows a CLIP vision encoder by itself, and wants its config", async () => {
    const folder = join(goldens, "../../../models/pocket-clip");
    const files = ["config.json", "model.safetensors"].map(path => ({ path, source: bytesSource(readFileSync(join(folder, path))) }));
    expect(await detectAdapter(files)).toMatchObject({ kind: "ip-adapter", layout: "image-encoder", cross_attention_dim: null });
    await expect(detectAdapter(files.slice(1))).rejects.toThrow("config.json: expected the config of a CLIP vision model");
  });

  it("takes the two files of an SDXL inversion for one", async () => {
    const files = ["adapters/ti/ti-sdxl-two-files.safetensors", "adapters/ti/ti-sdxl-two-files_2.safetensors"].flatMap(sources);
    expect(await detectAdapter(files)).toMatchObject({ layout: "diffusers-two-files", text_widths: [20, 28], token: "<cat-toy>" });
  });

  it("refuses code by its name, and what is no adapter by a key", async () => {
    await expect(detectAdapter(sources("adapters/hypernetwork/hyper-pickle-code.pt"))).rejects.toThrow("global __builtin__.eval");
    await expect(detectAdapter(sources("models/sd15/unet"))).rejects.toThrow(/conv_in\.bias: expected an adapter/);
  });
});

describe("adapterFits", () => {
  const base: Record<string, Parameters<typeof adapterFits>[1]> = {
    sd1: { family: "sd1", cross_attention_dim: 768, text_widths: [768] },
    sdxl: { family: "sdxl", cross_attention_dim: 2048, text_widths: [768, 1280] },
    refiner: { family: "sdxl-refiner", cross_attention_dim: 1280, text_widths: [1280] },
  };

  it("names both widths", () => {
    const lora = { kind: "lora" as const, families: [], cross_attention_dim: 2048, text_widths: [] };
    expect(adapterFits(lora, base.sd1!)).toBe("expected an adapter for text states of width 768 (SD 1), got one for 2048 (SDXL)");
    expect(adapterFits(lora, base.sdxl!)).toBeNull();
    const rows = { kind: "textual-inversion" as const, families: [], cross_attention_dim: null, text_widths: [1024] };
    expect(adapterFits(rows, base.sdxl!)).toBe("expected an adapter for text encoders of width 768 and 1280, got one for 1024");
  });

  it("lets one row of widths be either encoder's, and a pair only both", () => {
    const rows = (widths: number[]) => ({
      kind: "textual-inversion" as const,
      families: [],
      cross_attention_dim: null,
      text_widths: widths,
    });
    expect(adapterFits(rows([1280]), base.sdxl!)).toBeNull();
    expect(adapterFits(rows([768, 1280]), base.sdxl!)).toBeNull();
    expect(adapterFits(rows([768, 1280]), base.refiner!)).toBeNull();
    expect(adapterFits(rows([768, 1280]), base.sd1!)).toMatch(/width 768, got one for 768 and 1280/);
  });
});
