/** Latents to pixels, whole or in tiles. */
import { z } from "zod";
import { tiledDecode } from "../../pipeline/tiled-vae.ts";
import { float32Input, type VerifyKind } from "../kind.ts";
import { unsupportedModel } from "../model-support.ts";

/** diffusers' names for what `enable_tiling` sets up. */
const tilingSchema = z.object({
  tiled: z.boolean().default(false),
  tileLatentMinSize: z.int().positive().optional(),
  tileSampleMinSize: z.int().positive().optional(),
  tileOverlapFactor: z.number().min(0).lt(1).default(0.25),
});

export const vaeDecodeKind: VerifyKind = {
  kind: "vae-decode",
  supports: unsupportedModel,
  async run({ params }, context) {
    const model = await context.model();
    const latents = float32Input(context, "latents");
    const tiling = tilingOf(params, model.description);
    return { sample: await (tiling ? tiledDecode(model, latents, tiling) : model.decodeLatents(latents)) };
  },
};

/** Null: not in tiles. A size that the case leaves out is the model's own. */
export function tilingOf(params: unknown, description: { defaultWidth: number; vaeScaleFactor: number }) {
  const { tiled, tileLatentMinSize, tileSampleMinSize, tileOverlapFactor } = tilingSchema.parse(params);
  if (!tiled) return null;
  const pixelSize = tileSampleMinSize ?? description.defaultWidth;
  return { pixelSize, latentSize: tileLatentMinSize ?? pixelSize / description.vaeScaleFactor, overlap: tileOverlapFactor };
}
