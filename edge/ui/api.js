import { currentKey } from "./key.js";

/** @typedef {import("../../shared/errors.ts").Problem} Problem */
/** @typedef {Omit<import("../../shared/model.ts").ModelManifest, "pool">} Model */
/** @typedef {import("../../shared/job.ts").GenerationView} Generation */
/** @typedef {import("../../shared/job.ts").PictureView} Picture */
/** @typedef {import("../../shared/job.ts").JobView} Job */
/** @typedef {import("../../shared/adapter-resource.ts").AdapterView} Adapter */
/** @typedef {import("../../shared/upload.ts").UploadView} Upload */
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
  headers.set("Authorization", authorization().Authorization);
  if (typeof init.body === "string") headers.set("Content-Type", "application/json");
  const response = await fetch(path, { ...init, headers });
  if (!response.ok) throw new ApiError(await problemIn(response));
  return response;
}

/**
 * @param {Response} response
 * @returns {Promise<Problem>}
 */
async function problemIn(response) {
  if (response.headers.get("Content-Type")?.startsWith("application/problem+json")) return response.json();
  return foreignProblem(response);
}

/**
 * An answer that is not the API's own.
 * @param {{ status: number, statusText: string }} answer
 * @returns {Problem}
 */
function foreignProblem({ status, statusText }) {
  return { type: "about:blank", title: `The server answered ${status} ${statusText}`.trim(), status, code: "internal" };
}

/**
 * Sends a file, which may take long, and tells how far it is.
 * @template T
 * @param {"POST" | "PUT"} method
 * @param {string} path
 * @param {{ body: XMLHttpRequestBodyInit, headers?: Record<string, string>, onProgress: (share: number) => void }} file
 * @returns {Promise<T>} the answer's JSON
 * @throws {ApiError} with the problem document of any answer that is not a success
 */
export function sendFile(method, path, { body, headers = {}, onProgress }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, path);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => onProgress(total > 0 ? loaded / total : 0);
    request.onerror = () => reject(new ApiError({ ...foreignProblem({ status: 0, statusText: "" }), title: "The connection broke." }));
    request.onload = () => {
      if (request.status >= 200 && request.status < 300) return resolve(JSON.parse(request.responseText));
      const own = request.getResponseHeader("Content-Type")?.startsWith("application/problem+json");
      reject(new ApiError(own ? JSON.parse(request.responseText) : foreignProblem(request)));
    };
    request.send(body);
  });
}

/** The header that shows the API who asks. */
export function authorization() {
  return { Authorization: `Bearer ${currentKey() ?? ""}` };
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
 * @param {string} id of a generation's or a training's job
 * @returns {Promise<import("../../shared/job.ts").AnyJobView>}
 */
export async function getJob(id) {
  return (await call(`/v1/jobs/${id}`)).json();
}

/** @param {string} id */
export async function cancelJob(id) {
  await call(`/v1/jobs/${id}/cancel`, { method: "POST" });
}

/**
 * Every adapter that may be used, newest first.
 * @returns {Promise<Adapter[]>}
 */
export async function listAdapters() {
  /** @type {Adapter[]} */
  const found = [];
  /** @type {string | null} */
  let cursor = null;
  do {
    const query = new URLSearchParams({ limit: "50", ...(cursor && { cursor }) });
    /** @type {{ data: Adapter[], next_cursor: string | null }} */
    const page = await (await call(`/v1/adapters?${query}`)).json();
    found.push(...page.data);
    cursor = page.next_cursor;
  } while (cursor);
  return found;
}

/**
 * @param {string} id
 * @returns {Promise<Adapter>}
 */
export async function getAdapter(id) {
  return (await call(`/v1/adapters/${id}`)).json();
}

/** @param {string} id */
export async function deleteAdapter(id) {
  await call(`/v1/adapters/${id}`, { method: "DELETE" });
}

/**
 * Uploads an input file. The same content is the same upload.
 * @param {Blob} file
 * @returns {Promise<Upload>}
 */
export async function uploadInput(file) {
  return (await call("/v1/uploads", { method: "POST", body: file, headers: { "Content-Type": file.type } })).json();
}

/**
 * @param {string} id
 * @returns {Promise<Upload>}
 */
export async function getUpload(id) {
  return (await call(`/v1/uploads/${id}`)).json();
}

/**
 * The file of a picture of an earlier generation.
 * @param {string} id
 */
export async function getPicture(id) {
  return (await call(`/v1/pictures/${id}`)).blob();
}

/**
 * Address of a picture on this page's own origin: the page may be open under another name than the API writes into its URLs.
 * @param {string} url
 */
export function onThisOrigin(url) {
  const { pathname, search } = new URL(url, location.href);
  return pathname + search;
}
