/** All graphs of a diffusion model, each over the weights of its part. */
import type { Graph } from "../graph/ir.ts";
import type { ComponentName } from "../weights/key-layouts.ts";
import type { ModelSource, TextEncoderPart } from "../weights/model-source.ts";
import type { WeightSource } from "../weights/weights.ts";
import { buildVaeDecoder, buildVaeEncoder } from "./autoencoder-kl.ts";
import { buildTextEncoder } from "./clip-text.ts";
import { TextEmbeddings } from "./text-embeddings.ts";
import { buildUnet } from "./unet.ts";

export interface ModelGraphs {
  unet: Graph;
  vaeEncoder: Graph;
  vaeDecoder: Graph;
  textEncoders: readonly (TextEncoderPart & { graph: Graph; weights: WeightSource; embeddings: TextEmbeddings })[];
}

export function buildModelGraphs({ unet, vae, textEncoders }: ModelSource, weightsOf: (part: ComponentName) => WeightSource): ModelGraphs {
  return {
    unet: buildUnet(unet, weightsOf("unet")),
    vaeEncoder: buildVaeEncoder(vae, weightsOf("vae")),
    vaeDecoder: buildVaeDecoder(vae, weightsOf("vae")),
    textEncoders: textEncoders.map(({ component, config }) => ({
      component,
      config,
      graph: buildTextEncoder(config, weightsOf(component)),
      weights: weightsOf(component),
      embeddings: new TextEmbeddings(config, weightsOf(component)),
    })),
  };
}
