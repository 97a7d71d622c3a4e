import { type AdapterKind, adapterKindSchema, imageEncoderLayout } from "../shared/adapter.ts";
import { canonicalize, type Json, sha256Hex } from "../shared/canonical.ts";
import { ENGINE_VERSION } from "../shared/engine.ts";
import { AtelierError, type FieldError, problemOf } from "../shared/errors.ts";
import type { ModelManifest } from "../shared/model.ts";
import { sameUlid } from "../shared/names.ts";
import { MAX_SEED } from "../shared/picture.ts";
import {
  type DatasetItem,
  defaultScoring,
  hyperLoraNet,
  type TrainingRequest,
  type TrainingSampling,
  trainingFileSchema,
  trainingReportSchema,
  trainingRequestSchema,
} from "../shared/training.ts";
import { type ResolvedTraining, resolvedTrainingSchema, type TrainingCreate, type TrainingView } from "../shared/training-api.ts";
import { trainingDefaults } from "../shared/training-defaults.ts";
import type { Env } from "./env.ts";
import { fieldErrors } from "./field-errors.ts";
import type { ExecutionInputs } from "./inputs.ts";
import type { StoredJob } from "./jobs.ts";
import type { TenantStore } from "./tenant.ts";
import type { StoredDataset, TrainingRow } from "./tenant-datasets.ts";
import { adapterKey, type StoredAdapter } from "./tenant-files.ts";
import { datasetKey, trainingFiles, trainingKey } from "./training-files.ts";
import { trainingJobViews } from "./views.ts";

/** Most characters of a canonical training request: D1 takes rows of 2 MB, and the message that grants it has to hold it. */
const MAX_PARAMS_LENGTH = 700_000;

/** What a training's acceptance needs, all of it checked. */
export interface PlannedTraining {
  readonly request: ResolvedTraining;
  readonly params: string;
  readonly hash: string;
  readonly inputs: ExecutionInputs;
}

function wrong(errors: readonly FieldError[]): AtelierError {
  return new AtelierError("invalid_request", undefined, { errors });
}

/** Fills in what a request leaves open and checks it against model and dataset. @throws AtelierError invalid_request */
export async function planTraining(
  store: TenantStore,
  asked: TrainingCreate,
  model: ModelManifest,
  stored: StoredDataset,
): Promise<PlannedTraining> {
  const start =
    (await startAdapter(store, asked)) ??
    (await startNet(store, asked, model)) ??
    (await encoderAdapter(store, asked)) ??
    (await scoredAdapter(store, asked));
  const filled = fillIn(asked, model, stored, start);
  const parsed = trainingRequestSchema.safeParse(filled);
  if (!parsed.success) throw wrong(fieldErrors(parsed.error, filled));
  const request = parsed.data;
  const errors = [...sizeErrors(request, model), ...itemErrors(request), ...evaluationErrors(request)];
  if (errors.length > 0) throw wrong(errors);
  const params = canonicalize(request satisfies Json);
  if (params.length > MAX_PARAMS_LENGTH)
    throw wrong([{ field: "dataset", expected: "fewer pictures or shorter captions", got: `${params.length} characters in all` }]);
  const { items: _items, model: _model, engine_version: _version, ...rest } = request;
  return {
    request: { ...rest, model: model.name, dataset: stored.dataset.id },
    params,
    hash: await sha256Hex(params),
    inputs: {
      files: [...datasetInputs(request.items, stored), ...(start?.files ?? [])],
      adapters: start?.described ? [{ hash: start.from, files: start.described }] : [],
    },
  };
}

/** What a training goes on from, reads pictures with, or scores. */
interface Start {
  /** The setting that names it. */
  readonly setting: "start_from" | "image_encoder" | "adapter";
  /** As its settings name it to the runner. */
  readonly from: string;
  readonly files: ExecutionInputs["files"];
  /** Of an adapter. */
  readonly described?: ExecutionInputs["adapters"][number]["files"];
  /** Of a net that predicts LoRAs, which has its rank, and may predict without a step; of an adapter that is scored, its kind. */
  readonly defaults?: { readonly settings: { readonly rank: number } | { readonly kind: AdapterKind }; readonly steps: 0 };
}

async function startAdapter(store: TenantStore, { settings }: TrainingCreate): Promise<Start | undefined> {
  const reference = settings.method === "lora" ? settings.start_from : undefined;
  if (reference == null) return undefined;
  const found = (await store.adapters([reference])).get(reference);
  if (found?.adapter.status !== "ready" || Reflect.get(Object(found.adapter.manifest), "kind") !== "lora")
    throw wrong([{ field: "settings.start_from", expected: "the name, id or content hash of a LoRA that is ready", got: reference }]);
  return adapterInputs(found, "start_from");
}

/** The adapter of an IP-Adapter training's image encoder: an encoder by itself, or an IP-Adapter that has one beside it. */
async function encoderAdapter(store: TenantStore, { settings }: TrainingCreate): Promise<Start | undefined> {
  if (settings.method !== "ip-adapter") return undefined;
  const field = "settings.image_encoder";
  const reference = settings.image_encoder;
  if (reference == null)
    throw wrong([
      {
        field,
        expected:
          "the name, id or content hash of a CLIP vision encoder: register config.json, preprocessor_config.json and model.safetensors of a CLIPVisionModelWithProjection with POST /v1/adapters",
        got: "null",
      },
    ]);
  const found = (await store.adapters([reference])).get(reference);
  const isReady = found?.adapter.status === "ready" && Reflect.get(Object(found.adapter.manifest), "kind") === "ip-adapter";
  const isEncoder = Reflect.get(Object(found?.adapter.manifest), "layout") === imageEncoderLayout;
  if (!found || !isReady || !(isEncoder || found.files.some(({ path }) => path === "image_encoder/config.json")))
    throw wrong([
      {
        field,
        expected: "an adapter that is ready and is an image encoder, or an IP-Adapter with the folder image_encoder",
        got: reference,
      },
    ]);
  return adapterInputs(found, "image_encoder");
}

/** The adapter that an evaluation scores. */
async function scoredAdapter(store: TenantStore, { settings }: TrainingCreate): Promise<Start | undefined> {
  if (settings.method !== "evaluation") return undefined;
  const found = (await store.adapters([settings.adapter])).get(settings.adapter);
  const manifest = Object(found?.adapter.manifest);
  const kind = adapterKindSchema.safeParse(Reflect.get(manifest, "kind"));
  if (found?.adapter.status !== "ready" || !kind.success || Reflect.get(manifest, "layout") === imageEncoderLayout)
    throw wrong([
      { field: "settings.adapter", expected: "the name, id or content hash of an adapter that is ready", got: settings.adapter },
    ]);
  return { ...adapterInputs(found, "adapter"), defaults: { settings: { kind: kind.data }, steps: 0 } };
}

function adapterInputs(found: StoredAdapter, setting: Start["setting"]): Start {
  const [first, ...others] = found.files.map(({ path, sha256, bytes }) => ({ path, sha256, bytes }));
  const key = (sha256: string) => adapterKey(found.adapter.tenant_id, sha256);
  return {
    setting,
    from: found.adapter.hash,
    described: [first!, ...others],
    files: found.files.map(({ sha256, bytes }) => ({ sha256, bytes, key: key(sha256) })),
  };
}

async function startNet(store: TenantStore, { settings }: TrainingCreate, model: ModelManifest): Promise<Start | undefined> {
  const id = settings.method === "hyper-lora" ? settings.start_from : undefined;
  if (id == null) return undefined;
  const found = await trainingOf(store, id);
  const net = trainingFileSchema
    .array()
    .parse(found?.training.files ?? [])
    .find(({ path }) => path === hyperLoraNet);
  const source = found && resolvedTrainingSchema.safeParse(found.job.request).data?.settings;
  if (!net || found?.job.model_hash !== model.hash || source?.method !== "hyper-lora")
    throw wrong([
      { field: "settings.start_from", expected: `the id of a hyper-lora training of ${model.name} that has succeeded`, got: id },
    ]);
  const { sha256, bytes } = net;
  return {
    setting: "start_from",
    from: sha256,
    files: [{ sha256, bytes, key: trainingKey(store.tenant, id, net.path) }],
    defaults: { settings: { rank: source.rank }, steps: 0 },
  };
}

function fillIn(asked: TrainingCreate, model: ModelManifest, { items, files }: StoredDataset, start: Start | undefined): unknown {
  const {
    name,
    model: _model,
    dataset: _dataset,
    deadline: _deadline,
    budget,
    settings,
    optimizer,
    loss,
    sampling,
    scoring,
    concepts,
    seed,
    ...given
  } = asked;
  const defaults = trainingDefaults(settings.method, model.family, model);
  const sizes = new Map(files.map(({ sha256, width, height }) => [sha256, { width, height }]));
  return {
    ...defaults,
    ...(start?.defaults && { steps: start.defaults.steps }),
    ...given,
    engine_version: ENGINE_VERSION,
    model: model.hash,
    settings: {
      ...defaults.settings,
      ...start?.defaults?.settings,
      ...queries(settings),
      ...settings,
      ...(start && { [start.setting]: start.from }),
    },
    optimizer: { ...defaults.optimizer, ...optimizer },
    loss: { ...defaults.loss, ...loss },
    sampling: { ...samplingOf(model), ...sampling },
    scoring: { ...defaultScoring, ...scoring },
    concepts: (concepts ?? [{ token: name }]).map(concept => ({ class_prompt: null, ...concept })),
    items: items.map(({ dataset_id: _set, tenant_id: _tenant, ...item }) => ({ ...item, ...sizes.get(item.sha256) })),
    seed: seed ?? crypto.getRandomValues(new Uint32Array(1))[0]! % (MAX_SEED + 1),
    budget_ms: budget === null ? null : budget * 1000,
  };
}

/** Of plus as it was published. */
function queries(settings: TrainingCreate["settings"]): { tokens?: number } {
  return settings.method === "ip-adapter" && settings.variant === "plus" ? { tokens: 16 } : {};
}

function samplingOf({ defaults: { width: _width, height: _height, ...sampling } }: ModelManifest): TrainingSampling {
  return sampling;
}

function sizeErrors({ resolution }: TrainingRequest, { size_multiple, max_size, name }: ModelManifest): FieldError[] {
  if (resolution % size_multiple === 0 && resolution <= max_size) return [];
  return [
    { field: "resolution", expected: `a multiple of ${size_multiple} up to ${max_size}, which ${name} takes`, got: String(resolution) },
  ];
}

/** It has neither steps nor a use for its calibration. */
function evaluationErrors({ settings, steps, dry_run }: TrainingRequest): FieldError[] {
  if (settings.method !== "evaluation") return [];
  return [
    ...(steps === 0 ? [] : [{ field: "steps", expected: "0, for an evaluation", got: String(steps) }]),
    ...(dry_run ? [{ field: "dry_run", expected: "false, for an evaluation", got: "true" }] : []),
  ];
}

function itemErrors({ items, concepts, settings }: TrainingRequest): FieldError[] {
  const field = "dataset";
  const other = items.find(({ concept }) => concept >= concepts.length);
  return [
    ...(items.some(({ split }) => split === "train") ? [] : [{ field, expected: "at least one picture to train with", got: "none" }]),
    ...(other ? [{ field, expected: `pictures of concepts 0 to ${concepts.length - 1}`, got: String(other.concept) }] : []),
    ...(readsMaps(settings) && items.some(({ condition }) => condition === null)
      ? [{ field, expected: "a condition for every picture", got: "one without" }]
      : []),
  ];
}

/** Whether every picture needs a control map. */
function readsMaps(settings: TrainingRequest["settings"]): boolean {
  return settings.method === "controlnet" || (settings.method === "evaluation" && /^(controlnet|t2i-adapter)$/.test(settings.kind));
}

/** The files that the items name, each once. */
function datasetInputs(items: readonly DatasetItem[], { dataset, files }: StoredDataset): ExecutionInputs["files"] {
  const named = new Set(items.flatMap(({ sha256, mask, condition }) => [sha256, mask, condition]));
  return files
    .filter(({ sha256 }) => named.has(sha256))
    .map(({ sha256, bytes }) => ({ sha256, bytes, key: datasetKey(dataset.tenant_id, sha256) }));
}

/** A training and its job. */
export interface StoredTraining extends StoredJob {
  readonly training: TrainingRow;
}

export async function trainingOf(store: TenantStore, id: string): Promise<StoredTraining | undefined> {
  const [training, stored] = await Promise.all([store.training(id), store.job(sameUlid(id, "job"))]);
  return training && stored && { training, ...stored };
}

/** Trainings as their owner sees them; `urlOf` signs. */
export async function trainingViews(
  env: Env,
  stored: readonly StoredTraining[],
  urlOf: (id: string, path: string) => Promise<string | null>,
): Promise<TrainingView[]> {
  const jobs = await trainingJobViews(env, stored);
  return Promise.all(
    stored.map(async ({ training, job }, i) => {
      const view = jobs[i]!;
      const request = resolvedTrainingSchema.parse(job.request);
      const report = trainingReportSchema.nullable().parse(training.report);
      const files = await trainingFiles(env.BUCKET, training, job.status);
      return {
        ...{ id: training.id, object: "training", name: training.name, job: view, status: view.status, created_at: view.created_at },
        ...{ model: request.model, model_hash: job.model_hash, dataset: request.dataset, request, report },
        estimate:
          request.dry_run && report
            ? {
                steps: report.steps,
                seconds: report.steps * report.seconds_per_step + (report.scoring_seconds ?? 0),
                memory_bytes: report.peak_memory_bytes,
              }
            : null,
        adapters: training.adapters ?? [],
        files: await Promise.all(files.map(async ({ key: _key, ...file }) => ({ ...file, url: await urlOf(training.id, file.path) }))),
        error: view.error && problemOf(view.error.code, job.request_id, view.error.message),
      };
    }),
  );
}
