/** What is served of adapters' published layouts, and what proves that it is read right: the rows of docs/support.md. */

import type { Support } from "../support.ts";
import type { inversionLayoutNames } from "./inversion-keys.ts";
import type { LoraAlgorithm, loraNamings } from "./lora-keys.ts";

export const loraNamingSupport = {
  kohya: { title: "sd-scripts, LyCORIS: lora_unet_, lora_te(1|2)_, diffusers' blocks", proof: "reference" },
  "kohya-sdxl": { title: "sd-scripts: lora_unet_ and the original blocks", proof: "reference" },
  diffusers: { title: "unet., text_encoder(_2).; of all ages, with the header's lora_adapter_metadata", proof: "reference" },
  peft: { title: "a folder with adapter_config.json: ranks and alphas by module, rsLoRA, DoRA, biases", proof: "reference" },
  bare: { title: "diffusers' first files: no prefix", proof: "reference" },
  comfyui: { title: "diffusion_model., text_encoders.", proof: "second-implementation" },
  onetrainer: { title: "dots kept after kohya's prefixes; bundled inversions", proof: "second-implementation" },
} as const satisfies Record<(typeof loraNamings)[number][0], Support>;

export const loraAlgorithmSupport = {
  lora: { title: "LoRA, also of convolutions and in tucker's form; DoRA in both readings, both axes", proof: "reference" },
  loha: { title: "LoHa, also in tucker's form", proof: "reference" },
  lokr: { title: "LoKr, whole or decomposed, also in tucker's form", proof: "reference" },
  glora: { title: "GLoRA in both layouts", proof: "reference" },
  full: { title: "full differences of weights and biases", proof: "reference" },
  norm: { title: "differences of norms", proof: "reference" },
  ia3: { title: "(IA)3", proof: "second-implementation" },
} as const satisfies Record<LoraAlgorithm, Support>;

export const inversionSupport = {
  diffusers: { title: "{token: rows}, one file or one per text encoder", proof: "reference" },
  kohya: { title: "emb_params", proof: "reference" },
  a1111: { title: ".pt with string_to_param, read as data", proof: "reference" },
  "clip_l-clip_g": { title: "SDXL in one file", proof: "reference" },
  onetrainer: { title: "emp_params; rows for the encoder's result are left out", proof: "second-implementation" },
  replicate: { title: "text_encoders_0, text_encoders_1", proof: "second-implementation" },
} as const satisfies Record<(typeof inversionLayoutNames)[number], Support>;

export const hyperNetworkSupport = {
  safetensors: { title: "with its options as JSON", proof: "reference" },
  a1111: { title: ".pt read as data; any call is refused by name", proof: "reference" },
} as const satisfies Record<string, Support>;
