import { authorization, call, sendFile } from "./api.js";

/** @typedef {import("../../shared/training-api.ts").DatasetView} Dataset */
/** @typedef {import("../../shared/training-api.ts").DatasetSummary} DatasetSummary */
/** @typedef {import("../../shared/training-api.ts").DatasetItemView} DatasetItem */
/** @typedef {import("../../shared/training-api.ts").DatasetItemPatch} DatasetItemPatch */
/** @typedef {import("../../shared/training-api.ts").TrainingView} Training */
/** @typedef {import("zod").input<typeof import("../../shared/training-api.ts").trainingCreateSchema>} TrainingRequest */
/** @typedef {import("zod").input<typeof import("../../shared/training-api.ts").datasetRequestSchema>} DatasetRequest */

/** @returns {Promise<DatasetSummary[]>} the newest ones */
export async function listDatasets() {
  return (await (await call("/v1/datasets?limit=50")).json()).data;
}

/**
 * @param {string} id
 * @returns {Promise<Dataset>}
 */
export async function getDataset(id) {
  return (await call(`/v1/datasets/${id}`)).json();
}

/**
 * Makes a dataset of pictures that are sent with it.
 * @param {FormData} form
 * @param {(share: number) => void} onProgress
 * @returns {Promise<Dataset>}
 */
export function sendDataset(form, onProgress) {
  return sendFile("POST", "/v1/datasets", { body: form, headers: authorization(), onProgress });
}

/**
 * Makes a dataset of uploads and pictures that there are.
 * @param {DatasetRequest} request
 * @returns {Promise<Dataset>}
 */
export async function createDataset(request) {
  return (await call("/v1/datasets", { method: "POST", body: JSON.stringify(request) })).json();
}

/** @param {string} id */
export async function deleteDataset(id) {
  await call(`/v1/datasets/${id}`, { method: "DELETE" });
}

/**
 * Changes what is said of a picture.
 * @param {string} id of the dataset
 * @param {string} sha256 of the picture
 * @param {DatasetItemPatch} changes
 * @returns {Promise<DatasetItem>}
 */
export async function changeItem(id, sha256, changes) {
  return (await call(`/v1/datasets/${id}/items/${sha256}`, { method: "PATCH", body: JSON.stringify(changes) })).json();
}

/**
 * @param {string} id of the dataset
 * @param {string} sha256 of the picture
 */
export async function getDatasetPicture(id, sha256) {
  return (await call(`/v1/datasets/${id}/files/${sha256}`)).blob();
}

/**
 * One page of the tenant's trainings, newest first.
 * @param {string | null} cursor from the page before
 * @returns {Promise<{ data: Training[], next_cursor: string | null }>}
 */
export async function listTrainings(cursor) {
  const query = new URLSearchParams({ limit: "10", ...(cursor && { cursor }) });
  return (await call(`/v1/trainings?${query}`)).json();
}

/**
 * @param {TrainingRequest} request
 * @returns {Promise<Training>}
 */
export async function createTraining(request) {
  return (await call("/v1/trainings", { method: "POST", body: JSON.stringify(request) })).json();
}

/**
 * @param {string} id
 * @returns {Promise<Training>}
 */
export async function getTraining(id) {
  return (await call(`/v1/trainings/${id}`)).json();
}

/**
 * @param {string} id
 * @returns {Promise<Training>}
 */
export async function cancelTraining(id) {
  return (await call(`/v1/trainings/${id}/cancel`, { method: "POST" })).json();
}

/** @param {string} id */
export async function deleteTraining(id) {
  await call(`/v1/trainings/${id}`, { method: "DELETE" });
}

/**
 * @param {string} id of the training
 * @param {string} path of one of its files
 */
export async function getTrainingFile(id, path) {
  return (await call(`/v1/trainings/${id}/files/${path}`)).blob();
}
