import { existsSync, readFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { z } from "zod";
import { checkModel, inspectChecked, requireSound } from "../gpu-runner/inspect.ts";
import { defaultsOf } from "../gpu-runner/model-defaults.ts";
import type { ModelDescription } from "../gpu-runner/weights/describe.ts";
import { ModelError } from "../gpu-runner/weights/model-error.ts";
import { openModel } from "../gpu-runner/weights/model-source.ts";
import { type ModelManifest, modelManifestSchema } from "../shared/model.ts";
import { modelNameSchema } from "../shared/names.ts";

/**
 * `atelier.json` in a model's folder, `<name>.atelier.json` beside a single file: what its author recommends. It determines no picture, so
 * it is no part of the model's hash.
 */
const recommendationSchema = z.strictObject({
  name: modelNameSchema.optional(),
  description: z.string().optional(),
  defaults: modelManifestSchema.shape.defaults.partial().default({}),
});

/** Sides from a quarter of the size that the model was trained on to four times that: beyond, nothing recognisable comes out. */
const SIZE_SPAN = 4;

/**
 * The manifest of a model's folder or file, for the edge. Reads and hashes all of its files.
 * @throws ModelError where the model cannot be served
 */
export async function manifestOf(path: string, choice: { name?: string; pool?: string } = {}): Promise<ModelManifest> {
  const source = openModel(path);
  const checked = checkModel(source);
  requireSound(checked);
  const { unet, vae } = source;
  if (unet.outChannels !== vae.latentChannels)
    throw new ModelError(source.path, "out_channels", `${vae.latentChannels}, the autoencoder's`, String(unet.outChannels));
  const { description: model, parameters } = await inspectChecked(source, checked);
  if (model.tasks.length === 0)
    throw new ModelError(
      source.path,
      "in_channels",
      `${vae.latentChannels}, ${2 * vae.latentChannels} (edit) or ${2 * vae.latentChannels + 1} (inpaint)`,
      String(unet.inChannels),
    );
  const recommended = recommendationOf(resolve(path));
  return modelManifestSchema.parse({
    name: choice.name ?? recommended.name ?? basename(source.path, ".safetensors").toLowerCase(),
    hash: model.hash,
    pool: choice.pool ?? "default",
    family: model.family,
    tasks: model.tasks,
    prediction_type: model.predictionType,
    parameters,
    cross_attention_dim: model.crossAttentionDim,
    text_widths: model.textEncoders.map(({ width }) => width),
    size_multiple: model.vaeScaleFactor,
    ...sizesOf(model),
    max_prompt_tokens: Math.min(...model.tokenizers.map(({ maxLength }) => maxLength)) - 2,
    max_clip_skip: Math.min(...model.textEncoders.map(({ layers }) => layers)) - 1,
    defaults: { ...defaultsOf(model), ...recommended.defaults },
    ...(recommended.description !== undefined && { description: recommended.description }),
  });
}

function sizesOf({ defaultWidth, defaultHeight, vaeScaleFactor }: ModelDescription): { min_size: number; max_size: number } {
  const least = Math.ceil(Math.min(defaultWidth, defaultHeight) / SIZE_SPAN / vaeScaleFactor) * vaeScaleFactor;
  return { min_size: least, max_size: Math.max(defaultWidth, defaultHeight) * SIZE_SPAN };
}

function recommendationOf(path: string): z.infer<typeof recommendationSchema> {
  const file = path.endsWith(".safetensors") ? path.replace(/\.safetensors$/, ".atelier.json") : join(path, "atelier.json");
  if (!existsSync(file)) return recommendationSchema.parse({});
  try {
    return recommendationSchema.parse(JSON.parse(readFileSync(file, "utf8")));
  } catch (error) {
    const issue = error instanceof z.ZodError ? error.issues[0] : undefined;
    throw new ModelError(file, issue?.path.join(".") || "the file", issue?.message ?? "JSON", "something else");
  }
}
