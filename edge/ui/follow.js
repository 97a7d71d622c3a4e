import { ApiError, call, getJob } from "./api.js";
import { serverEvents } from "./sse.js";

/** @typedef {import("../../shared/job.ts").AnyJobView} AnyJob */
/** @typedef {import("../../shared/job.ts").JobEvent} JobEvent */

const terminal = ["succeeded", "failed", "canceled"];
/** How often a job that sends no events is asked for its place in the queue, in ms. */
const QUIET_MS = 2000;
const LONGEST_PAUSE_MS = 10_000;

/** @param {string} status of a job, or type of an event */
export function isTerminal(status) {
  return terminal.includes(status);
}

/**
 * Follows a job to its end: by its event stream, resumed where it broke, and by asking while the stream is silent.
 * @param {string} id
 * @param {{ onEvent: (event: JobEvent) => void, onJob: (job: AnyJob) => void }} listener
 * @param {AbortSignal} [signal] stops following
 * @returns {Promise<void>} resolves at the end
 * @throws {ApiError} when the job is gone or the key is refused
 */
export async function followJob(id, { onEvent, onJob }, signal) {
  const ended = new AbortController();
  signal?.addEventListener("abort", () => ended.abort(), { once: true });
  let heard = 0;
  const asking = askWhileQuiet(id, onJob, () => performance.now() - heard >= QUIET_MS, ended);
  const streaming = streamToEnd(
    id,
    event => {
      heard = performance.now();
      if (!ended.signal.aborted) onEvent(event);
    },
    ended,
  );
  try {
    await Promise.race([asking, streaming]);
  } finally {
    ended.abort();
    await Promise.allSettled([asking, streaming]);
  }
}

/**
 * @param {string} id
 * @param {(job: AnyJob) => void} onJob
 * @param {() => boolean} isQuiet
 * @param {AbortController} ended
 */
async function askWhileQuiet(id, onJob, isQuiet, ended) {
  while (!ended.signal.aborted) {
    if (isQuiet()) {
      const job = await unlessUnreachable(() => getJob(id));
      if (job && !ended.signal.aborted) onJob(job);
      if (job && isTerminal(job.status)) return;
    }
    await pause(QUIET_MS, ended.signal);
  }
}

/**
 * @param {string} id
 * @param {(event: JobEvent) => void} onEvent
 * @param {AbortController} ended
 */
async function streamToEnd(id, onEvent, ended) {
  let lastId = "";
  let wait = 1000;
  let failures = 0;
  while (!ended.signal.aborted) {
    const response = await unlessUnreachable(() =>
      call(`/v1/jobs/${id}/events`, {
        headers: { Accept: "text/event-stream", ...(lastId && { "Last-Event-ID": lastId }) },
        signal: ended.signal,
      }),
    );
    failures += 1;
    try {
      for await (const message of serverEvents(response?.body ?? new ReadableStream({ start: empty => empty.close() }))) {
        failures = 0;
        lastId = message.id || lastId;
        wait = message.retry ?? wait;
        if (!message.data) continue;
        /** @type {JobEvent} */
        const event = JSON.parse(message.data);
        onEvent(event);
        if (isTerminal(event.type)) return;
      }
    } catch (error) {
      if (error instanceof SyntaxError) throw error;
      // The connection broke: the stream goes on after the last event that came.
    }
    await pause(Math.min(wait * 2 ** failures, LONGEST_PAUSE_MS), ended.signal);
  }
}

/**
 * @template T
 * @param {() => Promise<T>} attempt
 * @returns {Promise<T | undefined>} undefined where the server could not be reached or was busy, so that trying again makes sense
 */
async function unlessUnreachable(attempt) {
  try {
    return await attempt();
  } catch (error) {
    if (error instanceof ApiError && error.problem.status < 500 && error.problem.status !== 429) throw error;
    return undefined;
  }
}

/**
 * @param {number} ms
 * @param {AbortSignal} signal ends the pause early
 * @returns {Promise<void>}
 */
function pause(ms, signal) {
  return new Promise(resolve => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        resolve();
      },
      { once: true },
    );
  });
}
