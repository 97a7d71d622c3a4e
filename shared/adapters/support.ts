/** What is served of adapters' published layouts, and what proves that it is read right: the rows of docs/support.md. */
import type { inversionLayoutNames } from "./inversion-keys.ts";
import type { LoraAlgorithm, loraNamings } from "./lora-keys.ts";

/** A number of another implementation; the same numbers from two of ours or from a formula; nothing. */
export type Proof = "reference" | "second-implementation" | "untested";

interface Row {
  what: string;
  proof: Proof;
}

export const loraNamingSupport = {
  kohya: { what: "sd-scripts, LyCORIS: lora_unet_, lora_te(1|2)_, diffusers' blocks", proof: "reference" },
  "kohya-sdxl": { what: "sd-scripts: lora_unet_ and the original blocks", proof: "reference" },
  diffusers: { what: "unet., text_encoder(_2).; of all ages, with the header's lora_adapter_metadata", proof: "reference" },
  peft: { what: "a folder with adapter_config.json: ranks and alphas by module, rsLoRA, DoRA, biases", proof: "reference" },
  bare: { what: "diffusers' first files: no prefix", proof: "reference" },
  comfyui: { what: "diffusion_model., text_encoders.", proof: "second-implementation" },
  onetrainer: { what: "dots kept after kohya's prefixes; bundled inversions", proof: "second-implementation" },
} as const satisfies Record<(typeof loraNamings)[number][0], Row>;

export const loraAlgorithmSupport = {
  lora: { what: "LoRA, also of convolutions and in tucker's form; DoRA in both readings, both axes", proof: "reference" },
  loha: { what: "LoHa, also in tucker's form", proof: "reference" },
  lokr: { what: "LoKr, whole or decomposed, also in tucker's form", proof: "reference" },
  glora: { what: "GLoRA in both layouts", proof: "reference" },
  full: { what: "full differences of weights and biases", proof: "reference" },
  norm: { what: "differences of norms", proof: "reference" },
  ia3: { what: "(IA)3", proof: "second-implementation" },
} as const satisfies Record<LoraAlgorithm, Row>;

export const inversionSupport = {
  diffusers: { what: "{token: rows}, one file or one per text encoder", proof: "reference" },
  kohya: { what: "emb_params", proof: "reference" },
  a1111: { what: ".pt with string_to_param, read as data", proof: "reference" },
  "clip_l-clip_g": { what: "SDXL in one file", proof: "reference" },
  onetrainer: { what: "emp_params; rows for the encoder's result are left out", proof: "second-implementation" },
  replicate: { what: "text_encoders_0, text_encoders_1", proof: "second-implementation" },
} as const satisfies Record<(typeof inversionLayoutNames)[number], Row>;

export const hyperNetworkSupport = {
  safetensors: { what: "with its options as JSON", proof: "reference" },
  a1111: { what: ".pt read as data; any call is refused by name", proof: "reference" },
} as const satisfies Record<string, Row>;
