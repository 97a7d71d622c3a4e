/** What a request can ask of the pipeline, and what proves each: rows of docs/support.md. */
import type { ModelTask } from "../../shared/model.ts";
import type { NoiseSource, PromptSyntax } from "../../shared/picture.ts";
import type { Support } from "../../shared/support.ts";

export const taskFeatures = {
  "text-to-image": { title: "Text to image", proof: "reference" },
  "image-to-image": { title: "Image to image", proof: "reference" },
  inpaint: { title: "Inpainting with a 4- or a 9-channel UNet", proof: "reference" },
  edit: { title: "Instruct-edit (InstructPix2Pix)", proof: "reference" },
} as const satisfies Record<ModelTask, Support>;

export const syntaxFeatures = {
  plain: { title: "Plain prompts in chunks of 75 tokens", proof: "reference" },
  a1111: { title: "A1111's weights, BREAK, alternation and [a:b:0.5]", proof: "second-implementation" },
} as const satisfies Record<PromptSyntax, Support>;

export const noiseFeatures = {
  philox: { title: "As torch draws it on CUDA, and A1111 on a GPU", proof: "reference" },
  mt19937: { title: "As torch draws it on the CPU, and ComfyUI", proof: "reference" },
} as const satisfies Record<NoiseSource, Support>;

export const passFeatures = {
  refiner: { title: "Hand-over to a refiner", proof: "reference" },
  upscale_latent: { title: "Second pass over enlarged latents", proof: "reference" },
  upscale_pixel: { title: "Second pass over enlarged pixels", proof: "reference" },
  tiled_vae: { title: "VAE in tiles", proof: "reference" },
  micro_conditioning: { title: "SDXL's sizes, crops and aesthetic scores", proof: "reference" },
  guidance_rescale: { title: "Guidance rescale", proof: "reference" },
  guidance_interval: { title: "Guidance between two shares of the run", proof: "reference" },
  combined_adapters: { title: "LoRA, inversion, IP-Adapter and ControlNet in one request", proof: "reference" },
  prompt_editing: { title: "Prompts that change during a run", proof: "reference" },
  adapter_spans: { title: "Adapters for a part of the steps", proof: "reference" },
  outpaint: { title: "Outpainting", proof: "second-implementation" },
  padding_crop: { title: "Repainting a crop around the mask", proof: "reference" },
  mask_fill: { title: "Masked area from noise or from the colours around it", proof: "second-implementation" },
  variation: { title: "Noise between two seeds", proof: "second-implementation" },
} as const satisfies Record<string, Support>;
