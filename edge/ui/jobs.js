import { ApiError, cancelJob, getGeneration } from "./api.js";
import { clock } from "./describe.js";
import { announce, byId, copyOf, part, toast } from "./dom.js";
import { followJob, isTerminal } from "./follow.js";

/** @typedef {import("./api.js").Generation} Generation */
/** @typedef {import("./api.js").Job} Job */
/** @typedef {{ step: number, steps: number }} Step */
/** @typedef {{ show: (generation: Generation) => void, progress: (generation: string, index: number, step: Step, preview?: string) => void }} Gallery */

/** Takes away the rows of jobs that have ended. */
export function clearEndedJobs() {
  for (const row of document.querySelectorAll("#jobs .ended")) row.remove();
}

/**
 * Shows a job under the form until it has ended, and its pictures in the gallery as they come.
 * @param {Generation} generation
 * @param {Gallery} gallery
 */
export async function watchJob(generation, gallery) {
  const row = jobRow(generation);
  /** @type {Map<number, Step>} */
  const steps = new Map();
  let latest = generation;
  const refresh = async () => {
    latest = await getGeneration(generation.id);
    gallery.show(latest);
    return latest;
  };
  try {
    await followJob(generation.job.id, {
      onJob: job => showWaiting(row, job, generation.request.model),
      onEvent: event => {
        if (event.type === "running") showRow(row, "Starting", null);
        if (event.type === "picture") refresh().catch(() => undefined);
        if (event.type !== "progress") return;
        steps.set(event.index, event);
        showRow(row, drawing(latest, event.index, event), share(latest, steps));
        gallery.progress(generation.id, event.index, event, event.preview);
      },
    });
    showEnd(row, await refresh());
  } catch (error) {
    endRow(row, error instanceof ApiError ? error.message : "The server cannot be reached. Reload the page to look again.");
  }
}

/** @param {Generation} generation */
function jobRow(generation) {
  const row = copyOf("job-template");
  row.title = generation.request.prompt;
  const cancel = part(row, "cancel", HTMLButtonElement);
  cancel.addEventListener("click", async () => {
    cancel.disabled = true;
    try {
      await cancelJob(generation.job.id);
    } catch (error) {
      cancel.disabled = false;
      toast(error instanceof ApiError ? error.message : "The server cannot be reached.");
    }
  });
  byId("jobs", HTMLElement).prepend(row);
  showWaiting(row, generation.job, generation.request.model);
  return row;
}

/**
 * @param {HTMLElement} row
 * @param {Pick<Job, "status" | "queue_position" | "no_runner" | "deadline_at">} job
 * @param {string} model
 */
function showWaiting(row, job, model) {
  if (job.status !== "queued") return;
  const ahead = job.queue_position;
  showRow(row, ahead ? `Queued, ${ahead} ahead` : "Queued, next in line", null);
  const hint = part(row, "hint", HTMLElement);
  hint.hidden = !job.no_runner;
  hint.textContent = `No runner that serves ${model} is connected. The job waits until ${clock(job.deadline_at)}.`;
  if (job.no_runner) showRow(row, "Waiting: no runner connected", null);
}

/**
 * @param {Generation} generation
 * @param {number} index
 * @param {Step} step
 */
function drawing({ pictures }, index, { step, steps }) {
  const which = pictures.length > 1 ? `Picture ${index + 1} of ${pictures.length}, step` : "Step";
  return `${which} ${step} of ${steps}`;
}

/**
 * Share of all steps that is done, 0 to 1.
 * @param {Generation} generation
 * @param {Map<number, Step>} steps
 */
function share({ pictures }, steps) {
  const computed = pictures.filter(({ cached }) => !cached);
  const done = computed.map(({ index, status }) => {
    const step = steps.get(index);
    return status === "succeeded" ? 1 : step ? step.step / step.steps : 0;
  });
  return done.reduce((sum, part) => sum + part, 0) / Math.max(1, computed.length);
}

/**
 * @param {HTMLElement} row
 * @param {string} text
 * @param {number | null} done 0 to 1, or null where nothing can be told
 */
function showRow(row, text, done) {
  const state = done === null ? text : "Drawing";
  if (row.dataset.state !== state) announce(state);
  row.dataset.state = state;
  part(row, "text", HTMLElement).textContent = text;
  const bar = part(row, "progress", HTMLProgressElement);
  if (done === null) bar.removeAttribute("value");
  else bar.value = done;
  part(row, "hint", HTMLElement).hidden = true;
}

/**
 * @param {HTMLElement} row
 * @param {Generation} generation
 */
function showEnd(row, { status, job, error, created_at }) {
  if (!isTerminal(status)) return;
  const seconds = (Date.parse(job.finished_at ?? created_at) - Date.parse(created_at)) / 1000;
  if (status === "succeeded") endRow(row, `Done in ${seconds.toFixed(1)} s`);
  else endRow(row, status === "canceled" ? "Canceled" : (error?.detail ?? error?.title ?? "Failed"));
}

/**
 * @param {HTMLElement} row
 * @param {string} text
 */
function endRow(row, text) {
  showRow(row, text, null);
  row.classList.add("ended");
  part(row, "cancel", HTMLElement).hidden = true;
  part(row, "progress", HTMLElement).hidden = true;
}

/**
 * Says how a request ended that needed no job to wait for.
 * @param {Generation} generation
 */
export function showFinished(generation) {
  const row = copyOf("job-template");
  byId("jobs", HTMLElement).prepend(row);
  if (generation.pictures.every(({ cached }) => cached)) endRow(row, "From cache");
  else showEnd(row, generation);
}
