/** Pictures that a training makes with the product's own sampler: samples with the adapter applied, and DreamBooth's prior pictures. */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { canonicalize } from "../../shared/canonical.ts";
import { ENGINE_VERSION } from "../../shared/engine.ts";
import { type AdapterUse, type PictureRequest, pictureRequestSchema, plainPicture } from "../../shared/picture.ts";
import type { DatasetItem, TrainingRequest } from "../../shared/training.ts";
import type { Picture } from "../pipeline/context.ts";
import { runPicture } from "../pipeline/run-picture.ts";
import { sha256OfFile } from "../weights/file-hash.ts";
import type { TrainingContext } from "./context.ts";
import { withoutToken } from "./scores.ts";

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

/** Items whose files the model drew. */
export interface OwnItems {
  items: DatasetItem[];
  /** Absolute path of such a file, or of another of the dataset. */
  file(sha256: string): string;
}

interface OwnPicture {
  prompt: string;
  seed: number;
  steps: number;
  concept: number;
}

/** The prior pictures of a DreamBooth, which it learns beside its own. */
export function priorItems(request: TrainingRequest, context: TrainingContext): Promise<OwnItems> {
  const { settings, concepts, seed } = request;
  if (settings.method !== "dreambooth") return ownItems(request, context, [], "train");
  const named = concepts.flatMap(({ class_prompt: prompt }, concept) => (prompt === null ? [] : [{ prompt, concept }]));
  const count = named.length === 0 ? 0 : settings.prior_pictures;
  const pictures = Array.from({ length: count }, (_, i) => ({ ...named[i % named.length]!, seed: seed + i, steps: settings.prior_steps }));
  return ownItems(request, context, pictures, "train");
}

/** Seeds past those of a training's prior pictures and samples, so that nothing is scored that was learned from. */
const genericSeeds = 2 ** 31;

/** What the base model draws to be asked later what of it was forgotten, as the request's `scoring` says. */
export function genericPictures(request: TrainingRequest, { defaults }: Pick<TrainingContext, "defaults">): OwnPicture[] {
  const { scoring, seed, concepts } = request;
  const prompts = genericPrompts(request);
  const steps = scoringSteps(request, defaults);
  return Array.from({ length: scoring.prior_pictures }, (_, i) => ({
    ...{ prompt: prompts[i % prompts.length]!, seed: seed + genericSeeds + i, steps, concept: i % concepts.length },
  }));
}

/** Captions without any concept's token: class prompts first. */
function genericPrompts(request: TrainingRequest): string[] {
  const { scoring, concepts, items } = request;
  if (scoring.prior_prompts.length > 0) return scoring.prior_prompts;
  const classes = concepts.flatMap(({ class_prompt }) => class_prompt ?? []);
  return [...new Set([...classes, ...items.map(({ caption }) => withoutToken(caption, request))])];
}

const mostScoringSteps = 20;

/** Sampling steps of pictures that are drawn for scores. */
export function scoringSteps({ scoring }: TrainingRequest, { steps }: TrainingContext["defaults"]): number {
  return scoring.steps ?? Math.min(steps, mostScoringSteps);
}

/** Where a picture that the base model draws is kept. */
export function ownPath(request: TrainingRequest, context: TrainingContext, { prompt, seed, steps }: OwnPicture) {
  const picture = ownRequest(request, context, { prompt, seed: seed % 2 ** 32, steps });
  const name = createHash("sha256").update(canonicalize(picture)).digest("hex");
  return { picture, path: join(context.cacheDir, "prior-pictures", `${name}.png`) };
}

/** The base model's pictures as items; each is drawn once for a model, prompt, seed and settings. */
export async function ownItems(
  request: TrainingRequest,
  context: TrainingContext,
  wanted: readonly OwnPicture[],
  split: DatasetItem["split"],
): Promise<OwnItems> {
  const paths = new Map<string, string>();
  const items: DatasetItem[] = [];
  for (const own of wanted) {
    const { picture, path } = ownPath(request, context, own);
    if (!existsSync(path)) {
      mkdirSync(dirname(path), { recursive: true });
      const { bytes } = await makePicture(context, picture, []);
      const temporary = `${path}.${crypto.randomUUID()}.tmp`;
      writeFileSync(temporary, bytes);
      renameSync(temporary, path);
      await context.yieldTo();
    }
    const sha256 = await sha256OfFile(path);
    paths.set(sha256, path);
    const { width, height } = picture;
    items.push({ sha256, caption: own.prompt, width, height, split, mask: null, condition: null, concept: own.concept });
  }
  return { items, file: sha256 => paths.get(sha256) ?? context.file(sha256) };
}
