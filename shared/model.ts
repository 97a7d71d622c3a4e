import { z } from "zod";
import { contentHashSchema, modelNameSchema, poolSchema } from "./names.ts";
import { samplerNameSchema, samplerOptionsSchema } from "./samplers.ts";

/** Architectures by their text encoders and widths; what a UNet's input channels add to that stands in `tasks`. */
export const modelFamilies = ["sd1", "sd2", "sdxl", "sdxl-refiner"] as const;
export const modelFamilySchema = z.enum(modelFamilies);
export type ModelFamily = z.infer<typeof modelFamilySchema>;

/**
 * What a model can be asked for. A 4-channel UNet does the first three (inpainting by putting the outside back after every step), a 9-channel
 * one only `inpaint`, an 8-channel one only `edit` (InstructPix2Pix).
 */
export const modelTasks = ["text-to-image", "image-to-image", "inpaint", "edit"] as const;
export const modelTaskSchema = z.enum(modelTasks);
export type ModelTask = z.infer<typeof modelTaskSchema>;

/** What the edge knows of a model: enough to validate a request, fill in defaults and route it. */
export const modelManifestSchema = z.strictObject({
  name: modelNameSchema,
  hash: contentHashSchema,
  pool: poolSchema,
  family: modelFamilySchema,
  tasks: z.array(modelTaskSchema).nonempty(),
  prediction_type: z.enum(["epsilon", "v_prediction", "sample"]),
  parameters: z.int().positive().describe("number of weights in all parts"),
  cross_attention_dim: z.int().positive().describe("width of the text states that the UNet reads: what an adapter has to fit"),
  text_widths: z.array(z.int().positive()).nonempty().describe("width of each text encoder: what a textual inversion has to fit"),
  size_multiple: z.int().positive().describe("width and height have to be multiples of this, in pixels"),
  min_size: z.int().positive().describe("least width and height, in pixels"),
  max_size: z.int().positive().describe("greatest width and height, in pixels"),
  max_prompt_tokens: z.int().positive().describe("tokens of one chunk of a prompt, without its two marks; longer prompts take more chunks"),
  max_clip_skip: z.int().min(0).describe("layers that may be left out at a text encoder's end"),
  defaults: z.strictObject({
    width: z.int().positive(),
    height: z.int().positive(),
    steps: z.int().positive(),
    guidance_scale: z.number(),
    guidance_rescale: z.number(),
    sampler: samplerNameSchema,
    sampler_options: samplerOptionsSchema,
    clip_skip: z.int().min(0),
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
