/** What trainings are proven by: rows of docs/support.md. */
import type { ModelFamily } from "../../shared/model.ts";
import type { Proof, Support } from "../../shared/support.ts";
import type { TrainingMethod } from "../../shared/training.ts";

/** Gradients, or whole trajectories, by the base's family. */
const methodProofs = {
  lora: { what: "LoRA, on attention, feed-forward and convolutions", sd1: "reference", sd2: "untested", sdxl: "reference" },
  "textual-inversion": { what: "textual inversion", sd1: "reference", sd2: "untested", sdxl: "untested" },
  dreambooth: { what: "DreamBooth, UNet and text encoder", sd1: "reference", sd2: "untested", sdxl: "untested" },
  hypernetwork: { what: "A1111's HyperNetwork", sd1: "reference", sd2: "untested", sdxl: "untested" },
  "hyper-lora": { what: "a net that predicts LoRAs", sd1: "second-implementation", sd2: "untested", sdxl: "untested" },
  "ip-adapter": { what: "IP-Adapter, base and plus", sd1: "reference", sd2: "untested", sdxl: "untested" },
  controlnet: { what: "ControlNet", sd1: "reference", sd2: "untested", sdxl: "untested" },
} as const satisfies Record<Exclude<TrainingMethod, "evaluation">, { what: string } & Record<Exclude<ModelFamily, "sdxl-refiner">, Proof>>;

/** Methods by families. */
export const trainingMethodSupport: Readonly<Record<string, Support>> = Object.fromEntries(
  Object.entries(methodProofs).flatMap(([method, { what, ...families }]) =>
    Object.entries(families).map(([family, proof]) => [`${method}, ${family}`, { title: what, proof }]),
  ),
);

export const trainingOptionSupport = {
  velocity: { title: "velocity prediction", proof: "reference" },
  min_snr_gamma: { title: "min-SNR, for epsilon and velocity", proof: "reference" },
  noise_offset: { title: "noise offset", proof: "reference" },
  zero_terminal_snr: { title: "zero terminal SNR: the alphas that samples are mixed by", proof: "reference" },
  "timestep_sampling: logit-normal": { title: "logit-normal timesteps", proof: "reference" },
  masks: { title: "masks as loss weights", proof: "reference" },
  prior_weight: { title: "prior pictures", proof: "reference" },
  schedule: { title: "warm-up, then constant, linear or cosine", proof: "reference" },
  clip_norm: { title: "clipping by the global norm", proof: "reference" },
  "moments: 8-bit": {
    title: "moments of 8 bits in bitsandbytes' blocks and codes, small tensors included; a few of a thousand take the code beside",
    proof: "reference",
  },
  ema: { title: "averaged weights", proof: "reference" },
  accumulation: { title: "several batches a step", proof: "reference" },
  dora: { title: "DoRA on linear layers", proof: "reference" },
  "dora, convolution": { title: "DoRA on convolutions", proof: "untested" },
  "text_encoder, sd1": { title: "LoRA on the text encoder", proof: "reference" },
  "text_encoder, sdxl": { title: "LoRA and DreamBooth on both text encoders of SDXL", proof: "untested" },
  "activation: linear, tanh": { title: "HyperNetwork: activations, tanh with normalisation", proof: "reference" },
  "activation: others": { title: "HyperNetwork: other activations, by derivatives against float64 differences", proof: "untested" },
  picture_dropout: { title: "IP-Adapter: dropped reference pictures", proof: "reference" },
  gradient_checkpointing: { title: "activations computed again, against the same step without it", proof: "untested" },
  flip: { title: "mirrored pictures", proof: "untested" },
  caption_dropout: { title: "dropped captions", proof: "untested" },
  condition_dropout: { title: "ControlNet: dropped maps", proof: "untested" },
} as const satisfies Record<string, Support>;
