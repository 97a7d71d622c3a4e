/** Which IP-Adapter a file holds, and what its projection is built as: both stand in its keys and shapes. */
import type { Proof } from "../../../shared/support.ts";
import type { IpProjectionConfig, IpVariant, ResamplerConfig } from "../../models/ip-adapter.ts";
import { ModelError } from "../../weights/model-error.ts";
import type { AdapterWeights } from "../adapter-weights.ts";

export const projectionPrefix = "image_proj.";

/** In the order of asking for the key that tells each; rows of docs/support.md. */
export const ipVariants = {
  base: { key: "proj.weight", title: "base, SD 1 and SDXL", proof: "reference" },
  full: { key: "proj.3.weight", title: "full face", proof: "reference" },
  "faceid-plus": { key: "perceiver_resampler.proj_in.weight", title: "FaceID plus and its second version", proof: "reference" },
  plus: { key: "latents", title: "plus and plus face, SD 1 and SDXL", proof: "reference" },
  faceid: { key: "norm.weight", title: "FaceID, where its embedding is given", proof: "reference" },
} as const satisfies Record<IpVariant, { key: string; title: string; proof: Proof }>;
const variantNames = Object.keys(ipVariants) as IpVariant[];

/** Width of a resampler's heads in all releases; the files do not tell it. */
const headWidth = 64;

/** `heads` is of the resampler, where it is known. Throws ModelError where the keys are of no IP-Adapter. */
export function ipProjectionConfig(weights: AdapterWeights, heads: number | null): IpProjectionConfig {
  const keys = new Set(weights.keys());
  const variant = variantNames.find(name => keys.has(projectionPrefix + ipVariants[name].key));
  if (!variant)
    throw new ModelError(
      weights.path,
      `${projectionPrefix}*`,
      `one of ${variantNames.map(name => ipVariants[name].key).join(", ")}`,
      "none of them",
    );
  const vector = (name: string): number => weights.shape(projectionPrefix + name, 1)[0]!;
  const rows = (name: string): number => weights.shape(projectionPrefix + name, 2)[0]!;
  const columns = (name: string): number => weights.shape(projectionPrefix + name, 2)[1]!;
  switch (variant) {
    case "base": {
      const width = vector("norm.weight");
      return { variant, width, tokens: tokensIn("proj.weight", width), imageWidth: columns("proj.weight") };
    }
    case "full":
      return { variant, width: vector("proj.3.weight"), imageWidth: columns("proj.0.weight") };
    case "plus":
      return {
        variant,
        width: rows("proj_out.weight"),
        tokens: weights.shape(`${projectionPrefix}latents`, 3)[1]!,
        resampler: resamplerConfig(weights, "", heads),
      };
    case "faceid": {
      const width = vector("norm.weight");
      return { variant, width, ...face(width) };
    }
    case "faceid-plus": {
      const resampler = resamplerConfig(weights, "perceiver_resampler.", heads);
      return { variant, width: rows("perceiver_resampler.proj_out.weight"), ...face(resampler.width), resampler };
    }
  }
  function face(width: number): { tokens: number; faceWidth: number; hiddenWidth: number } {
    return { tokens: tokensIn("proj.2.weight", width), faceWidth: columns("proj.0.weight"), hiddenWidth: rows("proj.0.weight") };
  }
  function tokensIn(name: string, width: number): number {
    if (rows(name) % width !== 0)
      throw new ModelError(weights.path, projectionPrefix + name, `a multiple of ${width} rows`, String(rows(name)));
    return rows(name) / width;
  }
}

function resamplerConfig(weights: AdapterWeights, place: string, heads: number | null): ResamplerConfig {
  const prefix = projectionPrefix + place;
  const keys = new Set(weights.keys());
  let layers = 0;
  while (keys.has(`${prefix}layers.${layers}.0.to_q.weight`)) layers++;
  const [width, imageWidth] = weights.shape(`${prefix}proj_in.weight`, 2) as [number, number];
  const attentionWidth = weights.shape(`${prefix}layers.0.0.to_q.weight`, 2)[0]!;
  const count = heads ?? attentionWidth / headWidth;
  if (!Number.isInteger(count) || attentionWidth % count !== 0)
    throw new ModelError(
      weights.path,
      `${prefix}layers.0.0.to_q.weight`,
      `rows that ${heads ?? `heads of ${headWidth}`} divide`,
      String(attentionWidth),
    );
  return {
    imageWidth,
    width,
    layers,
    heads: count,
    attentionWidth,
    feedForwardWidth: weights.shape(`${prefix}layers.0.1.1.weight`, 2)[0]!,
  };
}
