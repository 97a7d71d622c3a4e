import { z } from "zod";
import { jobErrorSchema, problemOf } from "../shared/errors.ts";
import { type ResolvedRequest, resolvedRequestSchema } from "../shared/generation.ts";
import type { AnyJobView, GenerationView, JobStatus, JobView, PictureView, TrainingJobView } from "../shared/job.ts";
import { sameUlid } from "../shared/names.ts";
import { mediaTypes } from "../shared/picture.ts";
import type { Env } from "./env.ts";
import type { StoredJob } from "./jobs.ts";
import { type LiveState, liveStates, nothingLive } from "./live.ts";
import type { JobPicture } from "./tenant.ts";

/** Generations as their owner sees them, and as they may be stored: what gives access to a picture is added as they leave (artifacts.ts). */
export async function generationViews(env: Env, stored: readonly StoredJob[]): Promise<GenerationView[]> {
  const live = await liveStates(env, stored);
  return stored.map(entry => generationView(entry, live.get(entry.job.id) ?? nothingLive));
}

/** Jobs of generations as their owner sees them. */
export async function jobViews(env: Env, stored: readonly StoredJob[]): Promise<JobView[]> {
  const live = await liveStates(env, stored);
  return stored.map(entry => jobView(entry, live.get(entry.job.id) ?? nothingLive));
}

/** Jobs of trainings as their owner sees them. */
export async function trainingJobViews(env: Env, stored: readonly StoredJob[]): Promise<TrainingJobView[]> {
  const live = await liveStates(env, stored);
  return stored.map(entry => ({
    ...jobState(entry, live.get(entry.job.id) ?? nothingLive),
    kind: "training",
    training: sameUlid(entry.job.id, "training"),
  }));
}

/** A job of either kind as its owner sees it. */
export async function anyJobView(env: Env, stored: StoredJob): Promise<AnyJobView> {
  const [view] = await (stored.job.kind === "training" ? trainingJobViews : jobViews)(env, [stored]);
  return view!;
}

function generationView(stored: StoredJob, live: LiveState): GenerationView {
  const { job } = stored;
  const request = resolvedRequestSchema.parse(job.request);
  const view = jobView(stored, live);
  return {
    id: sameUlid(job.id, "generation"),
    object: "generation",
    job: view,
    status: view.status,
    created_at: view.created_at,
    model: request.model,
    model_hash: job.model_hash,
    request,
    pictures: stored.pictures.map(picture => pictureView(picture, request, live)),
    error: view.error && problemOf(view.error.code, job.request_id, view.error.message),
  };
}

function jobView(stored: StoredJob, live: LiveState): JobView {
  const { id, object, ...state } = jobState(stored, live);
  return { id, object, kind: "generation", generation: sameUlid(id, "generation"), ...state };
}

/** Steps of a picture of a generation, or of a training. */
const stepsSchema = z.object({ steps: z.int() });

/** What jobs of both kinds have. */
function jobState({ job, pictures }: StoredJob, live: LiveState): Omit<JobView, "kind" | "generation"> {
  const states = pictures.map(picture => pictureStatus(picture, live));
  const waits = job.status === "active" && !states.includes("running");
  const positions = pictures.flatMap(({ execution_id }) => live.executions.get(execution_id ?? "")?.position ?? []);
  return {
    id: job.id,
    object: "job",
    status: jobStatus(job.status, pictures, states),
    created_at: new Date(job.created_at).toISOString(),
    finished_at: job.finished_at === null ? null : new Date(job.finished_at).toISOString(),
    deadline_at: new Date(job.deadline_at).toISOString(),
    queue_position: job.status === "active" && positions.length > 0 ? Math.min(...positions) : null,
    no_runner: waits && lacksRunner(job, pictures, live),
    progress: progressOf(pictures, stepsSchema.parse(job.request).steps, live),
    error: job.error === null ? null : jobErrorSchema.parse(job.error),
  };
}

/** Whether a picture waits that no runner can take. What the dispatcher does not know yet is judged by the model alone. */
function lacksRunner({ model_hash }: StoredJob["job"], pictures: readonly JobPicture[], { served, executions }: LiveState): boolean {
  const unserved = served !== undefined && !served.includes(model_hash);
  return pictures.some(({ state, execution_id }) => state === "pending" && (executions.get(execution_id ?? "")?.no_runner ?? unserved));
}

/** An active job runs from its first computed step to its end, also while its next picture waits. */
function jobStatus(stored: StoredJob["job"]["status"], pictures: readonly JobPicture[], states: readonly JobStatus[]): JobStatus {
  if (stored !== "active") return stored;
  const begun = states.includes("running") || pictures.some(({ cached, state }) => !cached && state === "succeeded");
  return begun ? "running" : "queued";
}

function pictureStatus({ state, execution_id }: JobPicture, live: LiveState): JobStatus {
  if (state !== "pending") return state;
  const execution = live.executions.get(execution_id ?? "")?.state;
  return execution === "running" || execution === "committing" || execution === "done" ? "running" : "queued";
}

function progressOf(pictures: readonly JobPicture[], steps: number, live: LiveState): JobView["progress"] {
  const computed = pictures.filter(({ cached }) => !cached);
  if (computed.length === 0) return null;
  const done = computed.map(({ idx, state }) => {
    const reported = live.progress.find(({ index }) => index === idx) ?? { step: 0, steps };
    return state === "succeeded" ? { step: reported.steps, steps: reported.steps } : reported;
  });
  return { step: done.reduce((sum, { step }) => sum + step, 0), steps: done.reduce((sum, picture) => sum + picture.steps, 0) };
}

function pictureView(picture: JobPicture, request: ResolvedRequest, live: LiveState): PictureView {
  const { file } = picture;
  return {
    index: picture.idx,
    id: file?.id ?? null,
    status: pictureStatus(picture, live),
    seed: picture.seed,
    width: file?.width ?? Math.round(request.width * (request.upscale?.scale ?? 1)),
    height: file?.height ?? Math.round(request.height * (request.upscale?.scale ?? 1)),
    cached: picture.cached,
    sha256: file?.sha256 ?? null,
    bytes: file?.bytes ?? null,
    media_type: file?.media_type ?? mediaTypes[request.format],
    url: null,
  };
}
