import { z } from "zod";
import { contentHashSchema, modelNameSchema, poolSchema } from "./names.ts";
import { samplerNameSchema } from "./samplers.ts";

/** What the edge knows of a model: enough to validate a request, fill in defaults and route it. */
export const modelManifestSchema = z.strictObject({
  name: modelNameSchema,
  hash: contentHashSchema,
  pool: poolSchema,
  family: z.enum(["sd1"]),
  prediction_type: z.enum(["epsilon", "v_prediction", "sample"]),
  parameters: z.int().positive().describe("number of weights in all parts"),
  size_multiple: z.int().positive().describe("width and height have to be multiples of this, in pixels"),
  min_size: z.int().positive().describe("least width and height, in pixels"),
  max_size: z.int().positive().describe("greatest width and height, in pixels"),
  max_prompt_tokens: z.int().positive().describe("tokens of a prompt that the text encoder reads, without its two marks"),
  defaults: z.strictObject({
    width: z.int().positive(),
    height: z.int().positive(),
    steps: z.int().positive(),
    guidance_scale: z.number(),
    guidance_rescale: z.number(),
    sampler: samplerNameSchema,
  }),
  description: z.string().optional(),
});
export type ModelManifest = z.infer<typeof modelManifestSchema>;

/** A model as clients see it. To which pool its requests go is the operator's business. */
export const modelViewSchema = modelManifestSchema
  .omit({ pool: true })
  .extend({ object: z.literal("model") })
  .meta({ id: "Model" });
export type ModelView = z.infer<typeof modelViewSchema>;
