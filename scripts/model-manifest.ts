import { existsSync, readFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { z } from "zod";
import { describeModel, type ModelDescription } from "../gpu-runner/weights/describe.ts";
import { ModelError } from "../gpu-runner/weights/model-error.ts";
import { type ModelManifest, modelManifestSchema } from "../shared/model.ts";
import { modelNameSchema } from "../shared/names.ts";
import type { SamplerName } from "../shared/samplers.ts";

/** `atelier.json` in a model's folder: what its author recommends. It determines no picture, so it is no part of the model's hash. */
const recommendationSchema = z.strictObject({
  name: modelNameSchema.optional(),
  description: z.string().optional(),
  defaults: modelManifestSchema.shape.defaults.partial().default({}),
});

/** Samplers of diffusers' scheduler classes, where the class is one that Atelier has. */
const samplersOfClasses: Readonly<Record<string, SamplerName>> = {
  DDIMScheduler: "ddim",
  EulerDiscreteScheduler: "euler",
  EulerAncestralDiscreteScheduler: "euler_a",
  DPMSolverMultistepScheduler: "dpmpp_2m",
};

/** What diffusers' StableDiffusionPipeline takes where a request is silent. */
const STEPS = 50;
const GUIDANCE_SCALE = 7.5;
/** Sides from a quarter of the size that the model was trained on to four times that: beyond, nothing recognisable comes out. */
const SIZE_SPAN = 4;

/**
 * The manifest of a model folder (diffusers layout), for the edge. Reads and hashes all of its files.
 * @throws ModelError where the folder cannot be served
 */
export async function manifestOf(path: string, choice: { name?: string; pool?: string } = {}): Promise<ModelManifest> {
  const folder = resolve(path);
  const model = await describeModel(folder);
  if (model.unetInputChannels !== model.latentChannels)
    throw new ModelError(
      join(folder, "unet/config.json"),
      "in_channels",
      `${model.latentChannels}: only text to image is served yet`,
      String(model.unetInputChannels),
    );
  const recommended = recommendationOf(folder);
  return modelManifestSchema.parse({
    name: choice.name ?? recommended.name ?? basename(folder).toLowerCase(),
    hash: model.hash,
    pool: choice.pool ?? "default",
    family: model.family,
    prediction_type: model.predictionType,
    parameters: Object.values(model.parameters).reduce((sum, count) => sum + count, 0),
    size_multiple: model.vaeScaleFactor,
    ...sizesOf(model),
    max_prompt_tokens: model.tokenizer.maxLength - 2,
    defaults: {
      width: model.defaultWidth,
      height: model.defaultHeight,
      steps: STEPS,
      guidance_scale: GUIDANCE_SCALE,
      guidance_rescale: 0,
      sampler: samplersOfClasses[String(model.schedulerConfig._class_name)] ?? "ddim",
      ...recommended.defaults,
    },
    ...(recommended.description !== undefined && { description: recommended.description }),
  });
}

function sizesOf({ defaultWidth, defaultHeight, vaeScaleFactor }: ModelDescription): { min_size: number; max_size: number } {
  const least = Math.ceil(Math.min(defaultWidth, defaultHeight) / SIZE_SPAN / vaeScaleFactor) * vaeScaleFactor;
  return { min_size: least, max_size: Math.max(defaultWidth, defaultHeight) * SIZE_SPAN };
}

function recommendationOf(folder: string): z.infer<typeof recommendationSchema> {
  const file = join(folder, "atelier.json");
  if (!existsSync(file)) return recommendationSchema.parse({});
  try {
    return recommendationSchema.parse(JSON.parse(readFileSync(file, "utf8")));
  } catch (error) {
    const issue = error instanceof z.ZodError ? error.issues[0] : undefined;
    throw new ModelError(file, issue?.path.join(".") || "the file", issue?.message ?? "JSON", "something else");
  }
}
