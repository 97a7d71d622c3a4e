/** Successive draws of one noise generator. */
import { z } from "zod";
import type { NoiseSource } from "../../../shared/picture.ts";
import { noiseSource } from "../../noise/noise-source.ts";
import type { VerifyKind } from "../kind.ts";

/** The generators by their names in the cases. */
const sources: ReadonlyMap<unknown, NoiseSource> = new Map([
  ["philox-nv", "philox"],
  ["torch-cpu", "mt19937"],
]);

const paramsSchema = z.object({ generator: z.string(), seed: z.int().min(0), shapes: z.array(z.array(z.int().min(0))) });

export const noiseKind: VerifyKind = {
  kind: "noise",
  supports: ({ params }) => (sources.has(params.generator) ? null : `generator ${params.generator}`),
  async run({ params }) {
    const { generator, seed, shapes } = paramsSchema.parse(params);
    const draw = noiseSource(sources.get(generator)!, seed);
    return Object.fromEntries(shapes.map((shape, i) => [`draw${i}`, { data: draw(shape.reduce((size, dim) => size * dim, 1)), shape }]));
  },
};
