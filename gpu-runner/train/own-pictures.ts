/** Pictures that a training makes with the product's own sampler: samples with the adapter applied, and DreamBooth's prior pictures. */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { canonicalize } from "../../shared/canonical.ts";
import { ENGINE_VERSION } from "../../shared/engine.ts";
import { type AdapterUse, type PictureRequest, pictureRequestSchema, plainPicture } from "../../shared/picture.ts";
import type { DatasetItem, TrainingRequest } from "../../shared/training.ts";
import type { Picture } from "../pipeline/context.ts";
import { runPicture } from "../pipeline/run-picture.ts";
import { sha256OfFile } from "../weights/file-hash.ts";
import type { TrainingContext } from "./context.ts";

/** An adapter on the disk and how a picture uses it. */
export interface OwnAdapter {
  path: string;
  use: AdapterUse;
}

/** A square picture at the training's resolution, as the model's own settings make it. */
export function ownRequest(
  request: TrainingRequest,
  { model, defaults }: TrainingContext,
  own: { prompt: string; seed: number; steps?: number; adapters?: readonly AdapterUse[]; format?: PictureRequest["format"] },
): PictureRequest {
  const multiple = model.model.description.vaeScaleFactor;
  const size = Math.max(Math.floor(request.resolution / multiple), 1) * multiple;
  return pictureRequestSchema.parse({
    ...plainPicture,
    engine_version: ENGINE_VERSION,
    model: request.model,
    ...defaults,
    width: size,
    height: size,
    format: "png",
    ...own,
    steps: own.steps ?? defaults.steps,
    adapters: [...(own.adapters ?? [])],
  });
}

/** @param adapters by path; none: the base model's picture */
export function makePicture(context: TrainingContext, request: PictureRequest, adapters: readonly OwnAdapter[]): Promise<Picture> {
  const paths = new Map(adapters.map(({ path, use }) => [use.adapter, path]));
  const inputs = {
    file: context.file,
    adapter(hash: string) {
      const path = paths.get(hash);
      if (path === undefined) throw new Error(`adapter ${hash}: expected one of the training's own`);
      return path;
    },
  };
  return runPicture({ ...context.pictures, inputs }, request, {}, context.signal);
}

/** The prior pictures of a DreamBooth as items; each is made once for a model, prompt, seed and settings. */
export async function priorItems(
  request: TrainingRequest,
  context: TrainingContext,
): Promise<{ items: DatasetItem[]; file(sha256: string): string }> {
  const { settings, concepts } = request;
  const paths = new Map<string, string>();
  const items: DatasetItem[] = [];
  const count = settings.method === "dreambooth" ? settings.prior_pictures : 0;
  const folder = join(context.cacheDir, "prior-pictures");
  const named = concepts.filter(concept => concept.class_prompt !== null);
  for (let i = 0; i < count && named.length > 0 && settings.method === "dreambooth"; i++) {
    const { class_prompt: prompt } = named[i % named.length]!;
    const picture = ownRequest(request, context, { prompt: prompt!, seed: (request.seed + i) % 2 ** 32, steps: settings.prior_steps });
    const path = join(folder, `${createHash("sha256").update(canonicalize(picture)).digest("hex")}.png`);
    if (!existsSync(path)) {
      mkdirSync(folder, { recursive: true });
      const { bytes } = await makePicture(context, picture, []);
      const temporary = `${path}.${crypto.randomUUID()}.tmp`;
      writeFileSync(temporary, bytes);
      renameSync(temporary, path);
      await context.yieldTo();
    }
    const sha256 = await sha256OfFile(path);
    paths.set(sha256, path);
    const { width, height } = picture;
    items.push({
      sha256,
      caption: prompt!,
      width,
      height,
      split: "train",
      mask: null,
      condition: null,
      concept: concepts.indexOf(named[i % named.length]!),
    });
  }
  return { items, file: sha256 => paths.get(sha256) ?? context.file(sha256) };
}
