import { z } from "zod";
import { sha256Hex } from "../shared/canonical.ts";
import { AtelierError, type FieldError } from "../shared/errors.ts";
import { parseJson } from "../shared/json.ts";
import { datasetItemSchema } from "../shared/training.ts";
import {
  type DatasetItemView,
  type DatasetLine,
  type DatasetRequest,
  type DatasetView,
  datasetLineSchema,
  MAX_DATASET_PICTURES,
} from "../shared/training-api.ts";
import type { Env } from "./env.ts";
import { fieldErrors } from "./field-errors.ts";
import { findInputs } from "./inputs.ts";
import type { TenantStore } from "./tenant.ts";
import type { DatasetFileRow, DatasetItemRow, StoredDataset } from "./tenant-datasets.ts";
import { datasetKey } from "./training-files.ts";
import { checkedSize, mediaTypeOf } from "./uploads.ts";
import { type PackedFile, readZip } from "./zip.ts";

/** Collects the pictures of a dataset: from a form, from a zip in it, or from uploads and pictures that there are. */

/** Of all files of a zip. */
const MAX_UNPACKED_BYTES = 128 * 1024 * 1024;
/** Of captions and metadata, each. */
const MAX_TEXT_BYTES = 4 * 1024 * 1024;
const MAX_FILES = 2 * MAX_DATASET_PICTURES;

type Bytes = Uint8Array<ArrayBuffer>;
export type NewFile = Omit<DatasetFileRow, "dataset_id" | "tenant_id">;
export type NewItem = Omit<DatasetItemRow, "dataset_id" | "tenant_id">;
export interface Collected {
  readonly files: readonly NewFile[];
  /** Each picture once: what is said of it first counts. */
  readonly items: readonly NewItem[];
}

function wrong(errors: readonly FieldError[]): AtelierError {
  return new AtelierError("invalid_request", undefined, { errors });
}

/** Stores a picture unless it is there, by its content. Only its first bytes are looked at: decoding is the runner's. */
async function storePicture(env: Env, tenant: string, bytes: Bytes, field: string): Promise<NewFile> {
  const media_type = mediaTypeOf(bytes);
  const size = media_type?.startsWith("image/") ? checkedSize(bytes, media_type, field) : undefined;
  if (media_type === undefined || !size?.width || !size.height)
    throw wrong([{ field, expected: "a png, webp or jpeg picture whose header tells its size", got: `${bytes.length} bytes` }]);
  const sha256 = await sha256Hex(bytes);
  await env.BUCKET.put(datasetKey(tenant, sha256), bytes, { sha256, httpMetadata: { contentType: media_type } });
  return { sha256, bytes: bytes.length, media_type, width: size.width, height: size.height };
}

function collected(files: readonly NewFile[], items: readonly NewItem[]): Collected {
  const distinct = <T extends { sha256: string }>(rows: readonly T[]) => [
    ...new Map(rows.toReversed().map(row => [row.sha256, row])).values(),
  ];
  return { files: distinct(files), items: distinct(items) };
}

/** @throws AtelierError invalid_request with the field of every reference that is not there or no picture */
export async function collectReferences(env: Env, store: TenantStore, { items }: DatasetRequest): Promise<Collected> {
  const fields = new Map(
    items.flatMap((item, i) =>
      (["image", "mask", "condition"] as const).flatMap(name =>
        item[name] === undefined ? [] : [[item[name], `items.${i}.${name}`] as const],
      ),
    ),
  );
  const found = await findInputs(store, [...fields.keys()]);
  const absent = [...fields].filter(([reference]) => !found.has(reference));
  if (absent.length > 0)
    throw wrong(absent.map(([got, field]) => ({ field, expected: "an upload whose file has come, or a picture that there is", got })));
  const files = new Map<string, NewFile>();
  // One after the other: each is held in memory.
  for (const [reference, field] of fields) {
    const object = await env.BUCKET.get(found.get(reference)!.key);
    if (!object) throw wrong([{ field, expected: "a picture whose file is there", got: reference }]);
    files.set(reference, await storePicture(env, store.tenant, new Uint8Array(await object.arrayBuffer()), field));
  }
  const hashOf = (reference: string | undefined) => (reference === undefined ? null : files.get(reference)!.sha256);
  return collected(
    [...files.values()],
    items.map(({ image, mask, condition, ...said }) => ({
      ...said,
      sha256: files.get(image)!.sha256,
      mask: hashOf(mask),
      condition: hashOf(condition),
    })),
  );
}

/** What a form brings: files by name, and what is said of them. */
interface Brought {
  /** Read one after the other: a Worker has 128 MB. */
  readonly pictures: ReadonlyMap<string, PackedFile>;
  readonly lines: readonly DatasetLine[];
}

/**
 * Fields `file` (several), `zip`, `captions` (JSON: file name to caption) and `metadata` (JSON lines). Among the files and in the zip, captions may
 * also stand in `captions.json`, `metadata.jsonl`, or for `x.png` in `x.txt`.
 */
export async function collectForm(env: Env, store: TenantStore, form: FormData): Promise<Collected> {
  const { pictures, lines } = await readForm(form);
  const files = new Map<string, NewFile>();
  for (const [name, read] of pictures) files.set(name, await storePicture(env, store.tenant, await read(), name));
  const errors = lines.flatMap(line =>
    [line.file_name, line.mask, line.condition]
      .filter(name => name !== undefined && !files.has(name))
      .map(got => ({ field: "metadata", expected: "names of pictures that were sent", got: String(got) })),
  );
  if (errors.length > 0) throw wrong(errors);
  const hashOf = (name: string | undefined) => (name === undefined ? null : files.get(name)!.sha256);
  const items = lines.map(({ file_name, mask, condition, ...said }) => ({
    ...{ sha256: files.get(file_name)!.sha256, mask: hashOf(mask), condition: hashOf(condition) },
    ...{ caption: said.caption, split: said.split, concept: said.concept },
  }));
  if (items.length === 0 || items.length > MAX_DATASET_PICTURES)
    throw wrong([{ field: "file", expected: `1 to ${MAX_DATASET_PICTURES} pictures`, got: String(items.length) }]);
  return collected([...files.values()], items);
}

async function readForm(form: FormData): Promise<Brought> {
  const named = new Map<string, PackedFile>();
  for (const entry of form.getAll("file"))
    if (entry instanceof File) named.set(baseName(entry.name), async () => new Uint8Array(await entry.arrayBuffer()));
  const zip = form.get("zip");
  if (zip instanceof File) {
    const packed = readZip(new Uint8Array(await zip.arrayBuffer()), { files: MAX_FILES, bytes: MAX_UNPACKED_BYTES });
    for (const [path, read] of packed) if (!isHidden(path)) named.set(baseName(path), read);
  }
  if (named.size > MAX_FILES) throw wrong([{ field: "file", expected: `at most ${MAX_FILES} files`, got: String(named.size) }]);
  const take = async (field: string, name: string) => {
    const given = form.get(field);
    const file = named.get(name);
    named.delete(name);
    if (given !== null) return typeof given === "string" ? given : given.text();
    return file && textOf(name, await file());
  };
  const captions = parseCaptions(await take("captions", "captions.json"));
  const metadata = parseLines(await take("metadata", "metadata.jsonl"));
  for (const [name, read] of named) {
    if (!name.endsWith(".txt")) continue;
    named.delete(name);
    const caption = captionSchema.safeParse(textOf(name, await read()).trim());
    if (!caption.success) throw wrong([{ field: name, expected: "a caption of at most 2000 characters", got: "more" }]);
    captions.set(stem(name), caption.data);
  }
  return { pictures: named, lines: withCaptions(named, metadata, captions) };
}

function textOf(field: string, bytes: Bytes): string {
  if (bytes.length > MAX_TEXT_BYTES) throw wrong([{ field, expected: `at most ${MAX_TEXT_BYTES} bytes`, got: String(bytes.length) }]);
  return new TextDecoder().decode(bytes);
}

/** Every picture that is said something of, and those that nobody says anything of and that are no mask or condition. */
function withCaptions(
  pictures: ReadonlyMap<string, PackedFile>,
  metadata: readonly DatasetLine[],
  captions: ReadonlyMap<string, string>,
): DatasetLine[] {
  const used = new Set(metadata.flatMap(({ file_name, mask, condition }) => [file_name, mask, condition]));
  const others = [...pictures.keys()].filter(name => !used.has(name)).map(file_name => datasetLineSchema.parse({ file_name }));
  return [...metadata, ...others].map(line => ({
    ...line,
    caption: line.caption || (captions.get(line.file_name) ?? captions.get(stem(line.file_name)) ?? ""),
  }));
}

const captionSchema = datasetItemSchema.shape.caption;

function parseCaptions(text: string | undefined): Map<string, string> {
  if (text === undefined) return new Map();
  const captions = z.record(z.string(), captionSchema).safeParse(parseJson(text));
  if (!captions.success) throw wrong([{ field: "captions", expected: "JSON that gives each file name its caption" }]);
  return new Map(Object.entries(captions.data));
}

function parseLines(text: string | undefined): DatasetLine[] {
  const lines = (text ?? "").split(/\r?\n/).filter(line => line.trim() !== "");
  return lines.map((line, i) => {
    const input = parseJson(line);
    const parsed = datasetLineSchema.safeParse(input);
    if (!parsed.success) throw wrong(fieldErrors(parsed.error, input).map(error => ({ ...error, field: `metadata.${i}.${error.field}` })));
    return parsed.data;
  });
}

function baseName(path: string): string {
  return path.replaceAll("\\", "/").split("/").at(-1)!;
}

function stem(name: string): string {
  return name.replace(/\.[^.]*$/, "");
}

/** What operating systems add to zips. */
function isHidden(path: string): boolean {
  return path.split("/").some(part => part.startsWith(".") || part === "__MACOSX");
}

/** The dataset as a client sees it. */
export function datasetView({ dataset, files, items }: StoredDataset): DatasetView {
  const { id, name, created_at } = dataset;
  return {
    ...{ id, object: "dataset", name, pictures: items.length },
    created_at: new Date(created_at).toISOString(),
    items: items.map(item => itemView(item, files)),
  };
}

export function itemView(item: DatasetItemRow, files: readonly DatasetFileRow[]): DatasetItemView {
  const { dataset_id: _dataset, tenant_id: _tenant, ...said } = item;
  const { bytes, media_type, width, height } = files.find(({ sha256 }) => sha256 === item.sha256)!;
  return { ...said, bytes, media_type, width, height };
}
