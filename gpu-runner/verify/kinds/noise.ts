/** Successive draws of one noise generator, or the start noise between two seeds. */
import { z } from "zod";
import type { NoiseSource } from "../../../shared/picture.ts";
import { noiseSource } from "../../noise/noise-source.ts";
import { itemNoise } from "../../pipeline/item-noise.ts";
import type { VerifyKind } from "../kind.ts";

/** The generators by their names in the cases. */
const sources: ReadonlyMap<unknown, NoiseSource> = new Map([
  ["philox-nv", "philox"],
  ["torch-cpu", "mt19937"],
]);

const variationSchema = z.object({ seed: z.int().min(0), strength: z.number() });
const paramsSchema = z.object({
  generator: z.string(),
  seed: z.int().min(0),
  shapes: z.array(z.array(z.int().min(0))),
  variation: variationSchema.optional(),
});

/** Of one item's latents. */
const latentShape = z.tuple([z.literal(1), z.int(), z.int(), z.int()]);

export const noiseKind: VerifyKind = {
  kind: "noise",
  supports: ({ params }) => (sources.has(params.generator) ? null : `generator ${params.generator}`),
  async run({ params }) {
    const { generator, seed, shapes, variation } = paramsSchema.parse(params);
    const noise_source = sources.get(generator)!;
    if (variation) {
      const shape = latentShape.parse(shapes[0]);
      return { draw0: { data: itemNoise({ seed, noise_source, variation }, shape)("start"), shape } };
    }
    const draw = noiseSource(noise_source, seed);
    return Object.fromEntries(shapes.map((shape, i) => [`draw${i}`, { data: draw(shape.reduce((size, dim) => size * dim, 1)), shape }]));
  },
};
