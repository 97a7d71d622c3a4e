import { authorization, call, getAdapter, onThisOrigin, sendFile } from "./api.js";
import { droppedFiles } from "./dropped-files.js";

/** @typedef {import("./api.js").Adapter} Adapter */
/** Files that are one adapter, each with its path in the adapter's folder. @typedef {{ name: string, files: { path: string, file: File }[] }} Package */

/** Up to here one request takes a file whole, in bytes. */
const ONE_STEP_BYTES = 48 * 2 ** 20;
/** Below this a progress bar would not be seen. */
const SMALL_BYTES = 4 * 2 ** 20;
const adapterFile = /\.(safetensors|pt|pth|bin|ckpt|json)$/i;

/**
 * A file or a folder as an adapter: a folder's notes and pictures stay behind.
 * @param {string} name of the file or folder
 * @param {{ path: string, file: File }[]} files
 * @returns {Package}
 */
export function packageOf(name, files) {
  const kept = files.length > 1 ? files.filter(({ path }) => adapterFile.test(path)) : files;
  const stem = name.replace(/\.(safetensors|pt|pth|bin|ckpt)$/i, "").replaceAll(/[^A-Za-z0-9._-]/g, "_");
  return { name: stem.replace(/^[^A-Za-z0-9]+/, "").slice(0, 100) || "adapter", files: kept };
}

/**
 * Uploads an adapter. Files whose content is there already are not sent.
 * @param {Package} adapter
 * @param {(text: string, share: number | null) => void} onProgress
 * @returns {Promise<Adapter>} ready or refused
 * @throws {import("./api.js").ApiError} where the API refuses it at once
 */
export async function uploadAdapter({ name, files }, onProgress) {
  const [only, second] = files;
  if (!only) throw new Error("the folder has no weights");
  // Without a secure context browsers have no crypto.subtle: then the server alone takes the hash.
  if (!second && only.file.size <= (crypto.subtle ? SMALL_BYTES : ONE_STEP_BYTES)) return sendWhole(name, only.file, onProgress);
  if (!crypto.subtle) throw new Error("large files and folders need this page under https:// or on localhost");
  /** @type {{ path: string, bytes: number, sha256: string }[]} */
  const described = [];
  for (const { path, file } of files) {
    onProgress(`Hashing ${path}`, null);
    described.push({ path: safePath(path), bytes: file.size, sha256: await sha256Of(file) });
  }
  /** @type {Adapter} */
  const opened = await (await call("/v1/adapters", { method: "POST", body: JSON.stringify({ name, files: described }) })).json();
  for (const [index, { upload }] of opened.files.entries()) {
    const sent = files.find((_, i) => described[i]?.sha256 === opened.files[index]?.sha256);
    if (!upload || !sent) continue;
    await sendFile(upload.method, onThisOrigin(upload.url), {
      body: sent.file,
      headers: upload.headers,
      onProgress: share => onProgress(`Sending ${sent.path}, ${Math.round(share * 100)} %`, share),
    });
  }
  return opened.status === "uploading" ? getAdapter(opened.id) : opened;
}

/**
 * @param {string} name
 * @param {File} file
 * @param {(text: string, share: number | null) => void} onProgress
 * @returns {Promise<Adapter>}
 */
function sendWhole(name, file, onProgress) {
  const body = new FormData();
  body.append("name", name);
  body.append("file", file);
  return sendFile("POST", "/v1/adapters", { body, headers: authorization(), onProgress: share => onProgress("Sending", share) });
}

/** @param {string} path */
function safePath(path) {
  return path
    .split("/")
    .map(part => part.replaceAll(/[^A-Za-z0-9._-]/g, "_").replace(/^\.+/, ""))
    .filter(part => part !== "")
    .join("/");
}

/** @param {File} file */
async function sha256Of(file) {
  const buffer = await file.arrayBuffer().catch(() => {
    throw new Error("the browser cannot read so large a file at once: use the API or the SDK");
  });
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", buffer));
  return Array.from(digest, byte => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * What was dropped: loose files are an adapter each, a folder is one.
 * @param {DataTransfer} transfer
 */
export async function droppedPackages(transfer) {
  return (await droppedFiles(transfer)).map(({ name, files }) => packageOf(name, files));
}

/**
 * What was chosen by a button for folders or files.
 * @param {readonly File[]} files
 * @returns {Package[]}
 */
export function chosenPackages(files) {
  const folder = files[0]?.webkitRelativePath.split("/")[0];
  if (!folder) return files.map(file => packageOf(file.name, [{ path: file.name, file }]));
  return [
    packageOf(
      folder,
      files.map(file => ({ path: file.webkitRelativePath.slice(folder.length + 1), file })),
    ),
  ];
}
