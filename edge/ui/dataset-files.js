import { uploadInput } from "./api.js";
import { takenPicture } from "./picture-field.js";
import { createDataset, sendDataset } from "./training-api.js";

/** @typedef {import("./dropped-files.js").PathFile} PathFile */
/** @typedef {import("./training-api.js").Dataset} Dataset */
/** @typedef {import("./training-api.js").DatasetRequest} DatasetRequest */
/** @typedef {(text: string, share: number | null) => void} Progress */

/** Up to here one form takes all files; more are uploaded one by one. */
const FORM_BYTES = 20 * 2 ** 20;
const pictureName = /\.(png|jpe?g|webp|avif|gif|bmp)$/i;
const noteName = /\.(txt|json|jsonl)$/i;

/**
 * Makes a dataset of pictures, of what stands beside them (x.txt, captions.json, metadata.jsonl), or of a zip of such files.
 * @param {string} name
 * @param {readonly PathFile[]} files
 * @param {Progress} onProgress
 * @returns {Promise<Dataset>}
 * @throws {import("./api.js").ApiError} where the API refuses it; an Error where there is nothing to send
 */
export async function datasetOf(name, files, onProgress) {
  const zip = files.find(({ path }) => /\.zip$/i.test(path));
  if (zip) {
    const form = new FormData();
    form.set("name", name);
    form.set("zip", zip.file);
    return sendDataset(form, share => onProgress("Sending", share));
  }
  const named = await namedFiles(files);
  const pictures = [...named].filter(([path]) => !noteName.test(path));
  if (pictures.length === 0) throw new Error("There is no picture among these files.");
  const bytes = [...named.values()].reduce((sum, { size }) => sum + size, 0);
  if (bytes > FORM_BYTES) return createDataset({ name, items: await uploaded(named, onProgress) });
  const form = new FormData();
  form.set("name", name);
  for (const [path, file] of named) form.append("file", file, path);
  return sendDataset(form, share => onProgress("Sending", share));
}

/**
 * Pictures and notes by names that differ; pictures of other formats become PNG.
 * @param {readonly PathFile[]} files
 */
async function namedFiles(files) {
  const kept = files.filter(
    ({ path, file }) => !path.split("/").some(part => part.startsWith(".")) && (isPicture(path, file) || noteName.test(path)),
  );
  const bases = kept.map(({ path }) => path.split("/").at(-1) ?? path);
  const isUnique = new Set(bases).size === bases.length;
  /** @type {Map<string, Blob>} */
  const named = new Map();
  for (const [i, { path, file }] of kept.entries()) {
    const name = isUnique ? (bases[i] ?? path) : path.replaceAll("/", "-");
    if (noteName.test(name)) named.set(name, file);
    else {
      const picture = await takenPicture(file);
      named.set(picture === file ? name : name.replace(/\.[^.]*$/, ".png"), picture);
    }
  }
  return named;
}

/**
 * @param {string} path
 * @param {File} file
 */
function isPicture(path, file) {
  return file.type.startsWith("image/") || pictureName.test(path);
}

/**
 * Uploads the pictures and reads what the notes say of them.
 * @param {ReadonlyMap<string, Blob>} named
 * @param {Progress} onProgress
 * @returns {Promise<DatasetRequest["items"]>}
 */
async function uploaded(named, onProgress) {
  /** @type {Map<string, string>} */
  const ids = new Map();
  const pictures = [...named].filter(([name]) => !noteName.test(name));
  for (const [i, [name, picture]] of pictures.entries()) {
    onProgress(`Sending ${name}`, i / pictures.length);
    ids.set(name, (await uploadInput(picture)).id);
  }
  const lines = await metadata(named);
  const captions = await captionFile(named);
  const beside = new Set(lines.flatMap(({ mask, condition }) => [mask, condition]));
  const others = [...ids.keys()].filter(name => !beside.has(name) && !lines.some(line => line.file_name === name));
  const all = [...lines, ...others.map(file_name => /** @type {Line} */ ({ file_name }))];
  return Promise.all(
    all.map(async ({ file_name, text, caption, mask, condition, ...said }) => ({
      ...said,
      image: ids.get(file_name) ?? "",
      caption: caption || text || captions[file_name] || ((await named.get(`${stem(file_name)}.txt`)?.text()) ?? "").trim(),
      ...(mask && { mask: ids.get(mask) }),
      ...(condition && { condition: ids.get(condition) }),
    })),
  );
}

/** A line of metadata.jsonl. @typedef {{ file_name: string, text?: string, caption?: string, mask?: string, condition?: string }} Line */

/**
 * @param {ReadonlyMap<string, Blob>} named
 * @returns {Promise<Line[]>}
 */
async function metadata(named) {
  const lines = ((await named.get("metadata.jsonl")?.text()) ?? "").split(/\r?\n/).filter(line => line.trim() !== "");
  return lines.map(line => JSON.parse(line));
}

/**
 * @param {ReadonlyMap<string, Blob>} named
 * @returns {Promise<Record<string, string>>}
 */
async function captionFile(named) {
  return JSON.parse((await named.get("captions.json")?.text()) ?? "{}");
}

/** @param {string} name */
function stem(name) {
  return name.replace(/\.[^.]*$/, "");
}
