import { ApiError } from "./api.js";
import { comparison } from "./comparison.js";
import { curve } from "./curve.js";
import { clock, duration, fileSize } from "./describe.js";
import { announce, byId, make, toast } from "./dom.js";
import { followJob, isTerminal } from "./follow.js";
import { cancelTraining, getTraining } from "./training-api.js";
import { methods } from "./training-methods.js";
import { adapterTitle, downloads, facts, scoreTable } from "./training-report.js";
import { createSamples } from "./training-samples.js";

/** @typedef {import("./training-api.js").Training} Training */
/** @typedef {import("../../shared/job.ts").JobEvent} JobEvent */
/** @typedef {Extract<JobEvent, { type: "step" }>} Step */
/** What is known of a training's way: values by step. @typedef {{ losses: Map<number, number>, smoothed: Map<number, number>, rates: Map<number, number>, validation: Map<number, number>, best: number | null, last: Step | null, phase: string }} Course */

const section = byId("training", HTMLElement);
const cancel = byId("training-cancel", HTMLButtonElement);
/** @type {Record<Extract<JobEvent, { type: "phase" }>["phase"], string>} */
const phases = {
  loading: "Loading the model",
  caching: "Reading the pictures",
  prior: "Drawing what must not be forgotten",
  calibrating: "Measuring",
  training: "Training",
  scoring: "Scoring",
  exporting: "Writing the result",
};
const lossCurve = curve("Loss", 240);
const rateCurve = curve("Learning rate", 120);
const samples = createSamples(byId("training-samples", HTMLElement));
/** @type {Training | null} */
let shown = null;
/** Stops following the one that is shown. */
let following = new AbortController();
/** @type {() => void} */
let ended = () => {};

/** @param {() => void} onEnd called when the training that is shown has ended */
export function setUpTrainingView(onEnd) {
  ended = onEnd;
  byId("training-curves", HTMLElement).replaceChildren(lossCurve.element, rateCurve.element);
  cancel.addEventListener("click", () => void stop());
}

/** Shows none. */
export function closeTraining() {
  following.abort();
  shown = null;
  section.hidden = true;
}

/**
 * Shows a training, and how it goes on until it has ended.
 * @param {string} id
 */
export async function openTraining(id) {
  if (shown?.id === id) return;
  closeTraining();
  following = new AbortController();
  const { signal } = following;
  const training = await getTraining(id);
  if (signal.aborted) return;
  shown = training;
  section.hidden = false;
  byId("training-title", HTMLElement).textContent = training.name;
  byId("training-about", HTMLElement).textContent = `${methods[training.request.settings.method].title} on ${training.model}`;
  samples.clear();
  for (const part of ["training-report", "training-comparison"]) byId(part, HTMLElement).replaceChildren();
  const course = newCourse();
  takeReport(course, training);
  showTraining(training, course);
  try {
    await follow(training, course, signal);
  } catch (error) {
    if (!signal.aborted) say(error instanceof ApiError ? error.message : "The server cannot be reached. Reload the page to look again.");
  }
}

/**
 * @param {Training} training
 * @param {Course} course
 * @param {AbortSignal} signal
 */
async function follow(training, course, signal) {
  const hasEnded = isTerminal(training.status);
  // Of one that has ended the events are kept for a day: they have its samples.
  await followJob(
    training.job.id,
    {
      onJob: job => {
        if (signal.aborted || hasEnded || job.status !== "queued") return;
        if (job.no_runner) say(`Waiting: no runner that serves ${training.model} is connected. It waits until ${clock(job.deadline_at)}.`);
        else say(job.queue_position ? `Queued, ${job.queue_position} ahead` : "Queued, next in line");
      },
      onEvent: event => {
        if (signal.aborted) return;
        take(course, event);
        if (!hasEnded) scheduleLive(training, course, signal);
      },
    },
    signal,
  );
  if (signal.aborted) return;
  if (hasEnded) return drawEnd(training, course);
  const end = await getTraining(training.id);
  if (signal.aborted) return;
  shown = end;
  takeReport(course, end);
  showTraining(end, course);
  ended();
}

/** @returns {Course} */
function newCourse() {
  const none = () => /** @type {Map<number, number>} */ (new Map());
  return { losses: none(), smoothed: none(), rates: none(), validation: none(), best: null, last: null, phase: "" };
}

/**
 * @param {Course} course
 * @param {JobEvent} event
 */
function take(course, event) {
  if (event.type === "phase") course.phase = phases[event.phase];
  if (event.type === "sample") samples.add(event);
  if (event.type === "validation") {
    course.validation.set(event.step, event.loss);
    if (event.best) course.best = event.step;
  }
  if (event.type !== "step") return;
  course.last = event;
  course.losses.set(event.step, event.loss);
  course.smoothed.set(event.step, event.smoothed_loss);
  course.rates.set(event.step, event.learning_rate);
}

/**
 * The report has the whole of the curves; events of long trainings are pruned.
 * @param {Course} course
 * @param {Training} training
 */
function takeReport(course, { report }) {
  if (!report) return;
  for (const [step, loss] of report.losses) course.losses.set(step, loss);
  for (const [step, loss] of report.validation) course.validation.set(step, loss);
  if (report.validation.length > 0) course.best = report.best_step;
}

/** Many events may come at once: they are drawn together. */
let isScheduled = false;
/**
 * @param {Training} training
 * @param {Course} course
 * @param {AbortSignal} signal
 */
function scheduleLive(training, course, signal) {
  if (isScheduled) return;
  isScheduled = true;
  requestAnimationFrame(() => {
    isScheduled = false;
    if (!signal.aborted && shown && !isTerminal(shown.status)) showLive(training, course);
  });
}

/**
 * @param {Training} training
 * @param {Course} course
 */
function showLive({ request }, course) {
  const { last, phase, best } = course;
  const steps = last?.steps ?? request.steps;
  say(phase === "" ? "Starting" : phase);
  const bar = byId("training-progress", HTMLProgressElement);
  if (last && phase === phases.training) bar.value = last.step / Math.max(1, last.steps);
  else bar.removeAttribute("value");
  const bestLoss = best === null ? undefined : course.validation.get(best);
  showStats([
    ["Step", last ? `${last.step} of ${steps}` : `of ${steps}`],
    ["Time left", last ? duration(last.seconds_left) : "not known yet"],
    ["Loss, smoothed", last ? last.smoothed_loss.toFixed(4) : "–"],
    ["Best validation", bestLoss === undefined ? "–" : `${bestLoss.toFixed(4)}, step ${best}`],
    ["Learning rate", last ? last.learning_rate.toPrecision(3) : "–"],
    ["Memory", last ? fileSize(last.memory_bytes) : "–"],
  ]);
  drawCurves(course, steps);
}

/** @param {[name: string, value: string][]} rows */
function showStats(rows) {
  const shownRows = rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  byId("training-stats", HTMLElement).replaceChildren(...shownRows);
}

/**
 * @param {Course} course
 * @param {number} steps
 */
function drawCurves({ losses, smoothed, rates, validation }, steps) {
  const sorted = (/** @type {Map<number, number>} */ values) => [...values].sort(([a], [b]) => a - b);
  byId("training-curves", HTMLElement).hidden = losses.size === 0;
  const raw = sorted(losses);
  lossCurve.show(
    [
      { title: "each step", style: "raw", points: raw },
      { title: "smoothed", style: "smooth", points: smoothed.size >= losses.size ? sorted(smoothed) : smooth(raw) },
      { title: "held out", style: "dots", points: sorted(validation) },
    ],
    steps,
  );
  rateCurve.element.hidden = rates.size === 0;
  rateCurve.show([{ title: "learning rate", style: "smooth", points: sorted(rates) }], steps);
}

/**
 * A running mean, weighted as the runner's own, for curves whose events are gone.
 * @param {readonly (readonly [number, number])[]} points
 */
function smooth(points) {
  let mean = points[0]?.[1] ?? 0;
  return points.map(([step, value], i) => {
    mean += (value - mean) * Math.max(1 / (i + 1), 0.05);
    return /** @type {const} */ ([step, mean]);
  });
}

/**
 * @param {Training} training
 * @param {Course} course
 */
function showTraining(training, course) {
  const hasEnded = isTerminal(training.status);
  byId("training-progress", HTMLElement).hidden = hasEnded;
  cancel.hidden = hasEnded;
  cancel.disabled = false;
  byId("training-stats", HTMLElement).hidden = hasEnded;
  if (!hasEnded) return showLive(training, course);
  section.dataset.status = training.status;
  say(endLine(training));
  drawEnd(training, course);
  showReport(training);
}

/**
 * @param {Training} training
 * @param {Course} course
 */
function drawEnd({ report }, course) {
  const steps = [...course.losses.keys()].reduce((a, b) => Math.max(a, b), 1);
  drawCurves(course, Math.max(report?.steps ?? 0, steps));
}

/** @param {Training} training */
function endLine({ status, job, created_at, error, report }) {
  if (status === "failed") return `Failed: ${error?.detail ?? error?.title ?? "the reason is not known"}`;
  if (status === "canceled") return "Canceled. Its last checkpoint stays among the files for a day.";
  const seconds = (Date.parse(job.finished_at ?? created_at) - Date.parse(created_at)) / 1000;
  return `Done in ${duration(seconds)}${report ? `, ${report.steps} steps` : ""}`;
}

/** @param {Training} training */
function showReport(training) {
  const { report, adapters, model, request, files } = training;
  const rows = facts(training).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  const uses = adapters.map((id, i) => {
    const query = new URLSearchParams({ adapter: id, model, prompt: request.sample_prompts[0] ?? request.concepts[i]?.token ?? "" });
    const which = adapters.length > 1 ? ` (${adapterTitle(training, i)})` : "";
    return make("a", { className: "button primary", href: `/?${query}` }, `Use in the playground${which}`);
  });
  const heading = (/** @type {string} */ title) => make("h3", {}, title);
  byId("training-report", HTMLElement).replaceChildren(
    ...(uses.length > 0 ? [make("div", { className: "uses-of" }, ...uses)] : []),
    ...(report?.scores ? [heading("Scores"), scoreTable(report.scores)] : []),
    ...(files.length > 0 ? [heading("Files"), make("ul", { className: "downloads" }, ...downloads(training))] : []),
    heading("Report"),
    make("dl", { className: "recipe" }, ...rows),
  );
  byId("training-comparison", HTMLElement).replaceChildren(...comparison(training));
}

/** @param {string} text */
function say(text) {
  const state = byId("training-state", HTMLElement);
  if (state.textContent === text) return;
  state.textContent = text;
  announce(text);
}

async function stop() {
  const training = shown;
  if (!training) return;
  cancel.disabled = true;
  try {
    await cancelTraining(training.id);
  } catch (error) {
    cancel.disabled = false;
    toast(error instanceof ApiError ? error.message : "The server cannot be reached.");
  }
}
