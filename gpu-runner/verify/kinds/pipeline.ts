/** Whole pictures: prompts and start noise to latents and pixels. */
import { join } from "node:path";
import { z } from "zod";
import { toUnitPictures } from "../../pipeline/pixels.ts";
import { textToImage } from "../../pipeline/text-to-image.ts";
import { schedulerClasses, schedulerConfig, stableDiffusionConfig } from "../../schedulers/config.ts";
import { clipTokenizer } from "../../tokenizer/clip.ts";
import { readClipVocabulary } from "../../tokenizer/load.ts";
import { float32Input, type VerifyKind } from "../kind.ts";
import { unsupportedModel } from "../model-support.ts";
import { noNoise, queuedNoise, unsupportedScheduler } from "./scheduler.ts";

const promptsSchema = z.union([z.string(), z.array(z.string()).nonempty()]);

/** Arguments and their defaults as in diffusers' StableDiffusionPipeline. Strict: an argument that isn't served must not be ignored. */
const paramsSchema = z.strictObject({
  task: z.literal("txt2img"),
  family: z.string().optional(),
  scheduler: z.enum(schedulerClasses),
  schedulerConfig: z.record(z.string(), z.unknown()).optional(),
  steps: z.int().default(50),
  width: z.int(),
  height: z.int(),
  prompt: promptsSchema,
  negativePrompt: promptsSchema.default(""),
  guidanceScale: z.number().default(7.5),
  guidanceRescale: z.number().default(0),
  clipSkip: z.int().nullish(),
  eta: z.number().default(0),
});

export const pipelineKind: VerifyKind = {
  kind: "pipeline",
  supports(goldenCase, modelPath) {
    const { params } = goldenCase;
    if (params.task !== "txt2img") return `task ${params.task}`;
    const unserved = unsupportedScheduler(params.scheduler) ?? unsupportedModel(goldenCase, modelPath);
    if (unserved !== null) return unserved;
    const unknown = Object.keys(params).find(name => !Object.hasOwn(paramsSchema.shape, name));
    return unknown === undefined ? null : `argument ${unknown}`;
  },

  async run({ params, inputs }, context) {
    const { schedulerConfig: given, prompt, negativePrompt, clipSkip, eta, ...settings } = paramsSchema.parse(params);
    const model = await context.model();
    const prompts = typeof prompt === "string" ? [prompt] : prompt;
    const { latents, image } = await textToImage(
      model,
      clipTokenizer(readClipVocabulary(join(context.modelPath, "tokenizer"), model.description.tokenizer.maxLength)),
      {
        ...settings,
        prompts,
        negativePrompts: typeof negativePrompt === "string" ? prompts.map(() => negativePrompt) : negativePrompt,
        clipSkip: clipSkip ?? 0,
        schedulerConfig: schedulerConfig(settings.scheduler, { ...stableDiffusionConfig(given ?? model.description.schedulerConfig), eta }),
      },
      {
        latents: float32Input(context, "latents").data,
        noise: "stepNoises" in inputs ? queuedNoise(float32Input(context, "stepNoises")) : noNoise,
      },
    );
    const pictures = toUnitPictures(image);
    const shape = [settings.height, settings.width, 3];
    return {
      latents,
      image: { data: pictures.flatMap(picture => Array.from(picture)), shape: pictures.length === 1 ? shape : [pictures.length, ...shape] },
    };
  },
};
