/** Successive draws of one noise generator. */
import { z } from "zod";
import { philoxNoise } from "../../noise/philox.ts";
import type { VerifyKind } from "../kind.ts";

const paramsSchema = z.object({ generator: z.string(), seed: z.int().min(0), shapes: z.array(z.array(z.int().min(0))) });

export const noiseKind: VerifyKind = {
  kind: "noise",
  supports: ({ params }) => (params.generator === "philox-nv" ? null : `generator ${params.generator}`),
  async run({ params }) {
    const { seed, shapes } = paramsSchema.parse(params);
    const draw = philoxNoise(seed);
    return Object.fromEntries(shapes.map((shape, i) => [`draw${i}`, { data: draw(shape.reduce((size, dim) => size * dim, 1)), shape }]));
  },
};
