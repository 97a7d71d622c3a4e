import { currentKey } from "./key.js";

/** @typedef {import("../../shared/errors.ts").Problem} Problem */
/** @typedef {Omit<import("../../shared/model.ts").ModelManifest, "pool">} Model */
/** @typedef {import("../../shared/job.ts").GenerationView} Generation */
/** @typedef {import("../../shared/job.ts").PictureView} Picture */
/** @typedef {import("../../shared/job.ts").JobView} Job */
/** @typedef {import("zod").input<typeof import("../../shared/generation.ts").generationRequestSchema>} GenerationRequest */

/** An answer that is not a success, with the problem document that came with it. */
export class ApiError extends Error {
  /** @param {Problem} problem */
  constructor(problem) {
    super(problem.detail ?? problem.title);
    this.problem = problem;
  }
}

/**
 * @param {string} path
 * @param {RequestInit} [init]
 * @returns {Promise<Response>} a success
 * @throws {ApiError} with the problem document of any other answer
 */
export async function call(path, init = {}) {
  const headers = new Headers(init.headers);
  headers.set("Authorization", `Bearer ${currentKey() ?? ""}`);
  if (init.body) headers.set("Content-Type", "application/json");
  const response = await fetch(path, { ...init, headers });
  if (!response.ok) throw new ApiError(await problemIn(response));
  return response;
}

/**
 * @param {Response} response
 * @returns {Promise<Problem>}
 */
async function problemIn(response) {
  const { status, statusText } = response;
  if (response.headers.get("Content-Type")?.startsWith("application/problem+json")) return response.json();
  return { type: "about:blank", title: `The server answered ${status} ${statusText}`.trim(), status, code: "internal" };
}

/** @returns {Promise<Model[]>} */
export async function listModels() {
  return (await (await call("/v1/models")).json()).data;
}

/**
 * One page of the tenant's generations, newest first.
 * @param {string | null} cursor from the page before
 * @returns {Promise<{ data: Generation[], next_cursor: string | null }>}
 */
export async function listGenerations(cursor) {
  const query = new URLSearchParams({ limit: "24", ...(cursor && { cursor }) });
  return (await call(`/v1/generations?${query}`)).json();
}

/**
 * Asks for pictures without waiting for them.
 * @param {GenerationRequest} request
 * @returns {Promise<Generation>}
 */
export async function createGeneration(request) {
  /** @type {Generation | Job} */
  const answer = await (await call("/v1/generations", { method: "POST", body: JSON.stringify(request) })).json();
  return answer.object === "job" ? getGeneration(answer.generation) : answer;
}

/**
 * @param {string} id
 * @returns {Promise<Generation>}
 */
export async function getGeneration(id) {
  return (await call(`/v1/generations/${id}`)).json();
}

/** @param {string} id */
export async function deleteGeneration(id) {
  await call(`/v1/generations/${id}`, { method: "DELETE" });
}

/**
 * @param {string} id
 * @returns {Promise<Job>}
 */
export async function getJob(id) {
  return (await call(`/v1/jobs/${id}`)).json();
}

/** @param {string} id */
export async function cancelJob(id) {
  await call(`/v1/jobs/${id}/cancel`, { method: "POST" });
}

/**
 * Address of a picture on this page's own origin: the page may be open under another name than the API writes into its URLs.
 * @param {string} url
 */
export function onThisOrigin(url) {
  const { pathname, search } = new URL(url, location.href);
  return pathname + search;
}
