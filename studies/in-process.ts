/**
 * The engine on the pocket model without a product around it: `node studies/in-process.ts train <method> <concept> <folder>` trains and
 * exports, `… score <method> <concept> <folder>` is another process that knows the exported file alone. A fifth word makes it a control
 * that must not count as learned: `rate-0`, or `own-pictures`, which learns from the base's own pictures of the same captions.
 */
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import sharp from "sharp";
import { readTensorFile } from "../gpu-runner/adapters/read-tensors.ts";
import { AdapterStore } from "../gpu-runner/adapters/store.ts";
import type { TrainableModel } from "../gpu-runner/components.ts";
import { loadDiffusionModel } from "../gpu-runner/load.ts";
import { preparePictureModel } from "../gpu-runner/pipeline/prepare-model.ts";
import { trainingAlphas } from "../gpu-runner/train/batch.ts";
import type { TrainingContext } from "../gpu-runner/train/context.ts";
import { prepareItems } from "../gpu-runner/train/dataset.ts";
import { methods } from "../gpu-runner/train/methods/index.ts";
import { AdamW } from "../gpu-runner/train/optimizer.ts";
import { makePicture, ownRequest } from "../gpu-runner/train/own-pictures.ts";
import { scoreTraining } from "../gpu-runner/train/scores.ts";
import { train } from "../gpu-runner/train/trainer.ts";
import { sha256OfFile } from "../gpu-runner/weights/file-hash.ts";
import { ENGINE_VERSION } from "../shared/engine.ts";
import { type DatasetItem, type TrainingRequest, trainingReportSchema, trainingRequestSchema } from "../shared/training.ts";
import { trainingDefaults } from "../shared/training-defaults.ts";
import { type ConceptSet, readConcept, type StudyPicture } from "./concepts.ts";
import { type ConceptMethod, conceptPlans } from "./plans.ts";
import { shortfalls } from "./verdict.ts";
import { worldPicture, worldSize } from "./world/world.ts";

const modelFolder = fileURLToPath(new URL("../models/pocket", import.meta.url));
const genericPictures = 8;
/** Seeds of the world's pictures that tell whether anything was forgotten. */
const genericSeed = 2_000_000;

interface Workshop {
  model: TrainableModel;
  request: TrainingRequest;
  context: TrainingContext;
}

/** The pocket model and a concept's request, with all files below a folder. */
async function open(method: ConceptMethod, concept: ConceptSet, folder: string): Promise<Workshop> {
  const files = join(folder, "files");
  const cacheDir = join(folder, "cache");
  for (const path of [files, cacheDir]) mkdirSync(path, { recursive: true });
  const options = { provider: "cpu", cacheDir } as const;
  const model = await loadDiffusionModel(modelFolder, options);
  const items = await Promise.all(concept.pictures.map(picture => keep(files, picture)));
  const file = (sha256: string) => join(files, sha256);
  const pictures = { inputs: { file, adapter: file }, adapters: new AdapterStore({ ...options, budget: 0 }), model: async () => prepared };
  const prepared = await preparePictureModel(model);
  const request = makeRequest(method, concept, items, model.description.hash);
  const context: TrainingContext = {
    ...{ model: prepared, pictures, defaults, file, cacheDir, folder, resumeFrom: null, deadline: null },
    openStep: request => openStep(model, prepared.tokenizers, request, cacheDir),
    openOptimiser: async (tensors, settings) => new AdamW(tensors, settings),
    onEvent: event => {
      if (event.type === "step" && event.step % 10 === 0) console.log(`step ${event.step}: loss ${event.smoothed_loss.toFixed(4)}`);
    },
    onCheckpoint: () => {},
    yieldTo: async () => {},
  };
  return { model, request, context };
}

const defaults: TrainingContext["defaults"] = {
  ...{ width: worldSize, height: worldSize, steps: 20, guidance_scale: 3, guidance_rescale: 0.7 },
  ...{ sampler: "ddim", sampler_options: {}, clip_skip: 0 },
};

async function openStep(
  model: TrainableModel,
  tokenizers: Workshop["context"]["model"]["tokenizers"],
  request: TrainingRequest,
  cacheDir: string,
) {
  const { settings } = request;
  const shared = { model, tokenizers, request, start: null, options: { provider: "cpu", cacheDir } as const };
  if (settings.method === "lora") return methods.lora({ ...shared, settings });
  if (settings.method === "textual-inversion") return methods["textual-inversion"]({ ...shared, settings });
  if (settings.method === "dreambooth") return methods.dreambooth({ ...shared, settings });
  throw new Error(`method: expected one that learns a concept, got ${settings.method}`);
}

async function keep(folder: string, { png, caption, split, concept }: StudyPicture): Promise<DatasetItem> {
  const path = join(folder, "picture.png");
  writeFileSync(path, png);
  const sha256 = await sha256OfFile(path);
  copyFileSync(path, join(folder, sha256));
  return { sha256, caption, split, concept, width: worldSize, height: worldSize, mask: null, condition: null };
}

function makeRequest(method: ConceptMethod, concept: ConceptSet, items: DatasetItem[], model: string): TrainingRequest {
  const { budget, ...plan } = conceptPlans[method](concept);
  const rest = trainingDefaults(method, "sd1", {
    ...{ cross_attention_dim: 192, text_widths: [192], parameters: 15_000_000, defaults, size_multiple: 8 },
  });
  return trainingRequestSchema.parse({
    ...rest,
    ...plan,
    ...{
      engine_version: ENGINE_VERSION,
      model,
      items,
      resolution: worldSize,
      seed: 1,
      sample_prompts: concept.pictures
        .filter(({ split }) => split === "test")
        .slice(0, 4)
        .map(({ caption }) => caption),
      dry_run: false,
    },
    concepts: [{ token: concept.token, class_prompt: concept.isObject ? "toy" : null }],
    optimizer: { ...rest.optimizer, ...plan.optimizer },
    loss: { ...rest.loss, ...plan.loss },
    budget_ms: budget * 1000,
  });
}

const resultFile = "in-process.json";
const scoresFile = "scores.json";

async function trainConcept({ model, request, context }: Workshop): Promise<void> {
  const { report, files } = await train(request, context);
  await model.release();
  writeFileSync(join(context.folder, resultFile), JSON.stringify({ report, files: files.map(({ path }) => path) }, null, 1));
  console.log(
    `${report.steps} steps in ${report.seconds.toFixed(1)} s, ${report.scores ? shortfalls(report.scores).join("; ") || "learned" : "no scores"}`,
  );
}

/** The captions of the train pictures as the base draws them. */
async function ownPictures({ request, context }: Workshop): Promise<DatasetItem[]> {
  const items: DatasetItem[] = [];
  for (const [i, item] of request.items.entries()) {
    if (item.split === "test") items.push(item);
    else {
      const { bytes } = await makePicture(context, ownRequest(request, context, { prompt: item.caption, seed: i }), []);
      const { caption, concept } = item;
      items.push(await keep(join(context.folder, "files"), { file: `${i}.png`, png: bytes, caption, split: "train", concept }));
    }
  }
  return items;
}

async function asControl(workshop: Workshop, control: string): Promise<Workshop> {
  const { request } = workshop;
  if (control === "own-pictures") return { ...workshop, request: { ...request, items: await ownPictures(workshop) } };
  if (control !== "rate-0") throw new Error(`control: expected rate-0 or own-pictures, got ${control}`);
  return { ...workshop, request: { ...request, optimizer: { ...request.optimizer, learning_rate: 0, text_learning_rate: 0 } } };
}

/** Scores as the trainer's, of the exported file, with pictures of the world as what must not be forgotten. */
async function scoreConcept({ model, request, context }: Workshop): Promise<void> {
  const { report, files } = JSON.parse(readFileSync(join(context.folder, resultFile), "utf8"));
  const { step } = await context.openStep(request);
  const values = await readTensorFile(join(context.folder, "result", exportOf(request, files)));
  for (const { name } of step.tensors.list) {
    const found = values.get(name) ?? values.get("emb_params");
    if (!found) throw new Error(`${name}: expected it in the exported file, which has ${[...values.keys()].slice(0, 3).join(", ")} …`);
    step.tensors.value(name).data.set(found.data);
  }
  const generic: DatasetItem[] = [];
  for (let i = 0; i < genericPictures; i++) generic.push(await keepGeneric(context.folder, genericSeed + i));
  const prepare = (items: readonly DatasetItem[]) => prepareItems(context.model, { ...context, items, resolution: worldSize, flip: false });
  const settings = { request, model: context.model, alphas: trainingAlphas(context.model, request.loss), captions: null };
  const scores = await scoreTraining(step, settings, {
    own: await prepare(request.items.filter(({ split }) => split === "test")),
    generic: await prepare(generic),
    // Measured by the training, which draws with the exported file.
    drifts: [trainingReportSchema.parse(report).scores?.drift.value ?? 0],
  });
  await step.release();
  await model.release();
  writeFileSync(join(context.folder, scoresFile), JSON.stringify(scores, null, 1));
  if (scores) console.log(shortfalls(scores).join("; ") || "learned");
}

async function keepGeneric(folder: string, seed: number): Promise<DatasetItem> {
  const { rgb, caption } = worldPicture(seed);
  const png = await sharp(rgb, { raw: { width: worldSize, height: worldSize, channels: 3 } })
    .png()
    .toBuffer();
  return keep(join(folder, "files"), { file: `${seed}.png`, png, caption, split: "test", concept: 0 });
}

/** The layout whose names are the training's own. */
function exportOf({ settings }: TrainingRequest, files: readonly string[]): string {
  const wanted = settings.method === "textual-inversion" ? /^a1111\// : /^diffusers\/|pytorch_lora_weights/;
  const file = files.find(path => wanted.test(path) && path.endsWith(".safetensors"));
  if (!file) throw new Error(`${settings.method}: expected an export in the layout of ${wanted}, got ${files.join(", ")}`);
  return file;
}

async function main([command, method = "", name = "", folder = "", control]: readonly string[]): Promise<void> {
  if (!Object.hasOwn(conceptPlans, method) || !folder || (command !== "train" && command !== "score"))
    throw new Error(`expected "train|score <${Object.keys(conceptPlans).join("|")}> <concept> <folder>"`);
  const workshop = await open(method as ConceptMethod, readConcept(name), folder);
  if (command === "score") await scoreConcept(workshop);
  else await trainConcept(control ? await asControl(workshop, control) : workshop);
}

await main(process.argv.slice(2));
