import { z } from "zod";
import { adapterFileSchema } from "../shared/adapter.ts";
import { sha256Hex } from "../shared/canonical.ts";
import { AtelierError, type FieldError } from "../shared/errors.ts";
import type { AdapterSetting, GenerationRequest } from "../shared/generation.ts";
import { contentHashSchema, idPrefixes, sha256Schema } from "../shared/names.ts";
import { INPUT_KEPT_DAYS, MAX_INPUT_BYTES } from "../shared/upload.ts";
import { database } from "./database.ts";
import type { Env } from "./env.ts";
import { newId } from "./ids.ts";
import type { TenantStore } from "./tenant.ts";
import { finishUpload, inputKey, type UploadRow } from "./tenant-files.ts";
import { checkedSize, mediaTypeOf } from "./uploads.ts";

/** What the runner of an execution may fetch, as D1 keeps it: the grant is signed over it (edge/dispatcher/grants.ts). No other object is ever named to it. */
export const executionInputsSchema = z.strictObject({
  files: z
    .array(z.strictObject({ sha256: sha256Schema, bytes: z.int().positive(), key: z.string().min(1).describe("object key") }))
    .describe("input pictures and the files of the adapters, each once"),
  adapters: z.array(z.strictObject({ hash: contentHashSchema, files: z.array(adapterFileSchema).nonempty() })),
});
export type ExecutionInputs = z.infer<typeof executionInputsSchema>;

/** An input file that lies in the bucket. */
export interface InputFile {
  readonly sha256: string;
  readonly bytes: number;
  readonly key: string;
  readonly mediaType: string;
  readonly width: number | null;
  readonly height: number | null;
}

/** When an input that is used now may be deleted, in milliseconds since 1970. */
export function inputExpiry(now = Date.now()): number {
  return now + INPUT_KEPT_DAYS * 24 * 3_600_000;
}

type Replace = (reference: string, field: string) => string;

/** The request with every reference to an input file replaced; `field` is where it stands. */
function mapInputs(request: GenerationRequest, replace: Replace): GenerationRequest {
  const optional = (value: string | null, field: string) => (value === null ? null : replace(value, field));
  const inAdapters = (settings: AdapterSetting[], field: string) =>
    settings.map((setting, i) => mapSetting(setting, `${field}.${i}`, replace));
  return {
    ...request,
    image: optional(request.image, "image"),
    mask: optional(request.mask, "mask"),
    adapters: inAdapters(request.adapters, "adapters"),
    per_image: request.per_image.map((item, i) => ({
      ...item,
      ...(item.image !== undefined && { image: replace(item.image, `per_image.${i}.image`) }),
      ...(item.adapters && { adapters: inAdapters(item.adapters, `per_image.${i}.adapters`) }),
    })),
  };
}

function mapSetting(setting: AdapterSetting, field: string, replace: Replace): AdapterSetting {
  const { image, images, embedding, mask } = setting;
  return {
    ...setting,
    ...(image !== undefined && { image: replace(image, `${field}.image`) }),
    ...(images && { images: images.map(({ image: one, weight }, i) => ({ image: replace(one, `${field}.images.${i}.image`), weight })) }),
    ...(embedding && { embedding: replace(embedding, `${field}.embedding`) }),
    ...(mask && { mask: replace(mask, `${field}.mask`) }),
  };
}

/**
 * Finds every input file that a request names, stores those that stand in it, and names each by its id. Uploads that are used are kept longer.
 * @throws AtelierError invalid_request with the field of everything that is not there or no such file
 */
export async function resolveInputs(
  env: Env,
  store: TenantStore,
  request: GenerationRequest,
): Promise<{ request: GenerationRequest; inputs: ReadonlyMap<string, InputFile> }> {
  const fields = new Map<string, string>();
  mapInputs(request, (reference, field) => {
    if (!fields.has(reference)) fields.set(reference, field);
    return reference;
  });
  if (fields.size === 0) return { request, inputs: new Map() };
  const inline = [...fields.keys()].filter(reference => reference.startsWith("data:"));
  const ids = new Map<string, string>();
  const errors: FieldError[] = [];
  // One after the other: each is held in memory while it is decoded.
  for (const url of inline) {
    const stored = await storeInline(env, store, url, fields.get(url)!);
    if ("id" in stored) ids.set(url, stored.id);
    else errors.push(stored);
  }
  const named = [...fields.keys()].filter(reference => !reference.startsWith("data:"));
  const inputs = await findInputs(store, [...named, ...ids.values()]);
  errors.push(
    ...named.filter(id => !inputs.has(id)).map(id => ({ field: fields.get(id)!, expected: expectedFile(id), got: JSON.stringify(id) })),
  );
  if (errors.length > 0) throw new AtelierError("invalid_request", undefined, { errors });
  return { request: mapInputs(request, reference => ids.get(reference) ?? reference), inputs };
}

function expectedFile(id: string): string {
  return id.startsWith(idPrefixes.picture)
    ? "a picture that there is"
    : `an upload whose file has come; one that is not used is deleted after ${INPUT_KEPT_DAYS} days`;
}

/** Those of these uploads and pictures that there are, by id. Uploads are kept longer. */
export async function findInputs(store: TenantStore, ids: readonly string[]): Promise<Map<string, InputFile>> {
  const [uploaded, made] = [idPrefixes.upload, idPrefixes.picture].map(prefix => ids.filter(id => id.startsWith(`${prefix}_`)));
  const [uploads, pictures] = await Promise.all([
    uploaded!.length > 0 ? store.useUploads(uploaded!, inputExpiry()) : [],
    made!.length > 0 ? store.pictures(made!) : [],
  ]);
  return new Map([
    ...uploads.map(row => [row.id, inputFile(row)] as const),
    ...pictures.map(({ id, r2_key: key, media_type: mediaType, ...picture }) => [id, { ...picture, key, mediaType }] as const),
  ]);
}

function inputFile({ tenant_id, sha256, bytes, media_type: mediaType, width, height }: UploadRow): InputFile {
  return { sha256, bytes, key: inputKey(tenant_id, sha256), mediaType, width, height };
}

async function storeInline(env: Env, store: TenantStore, url: string, field: string): Promise<{ id: string } | FieldError> {
  const encoded = url.slice(url.indexOf(",") + 1);
  let bytes: Uint8Array<ArrayBuffer>;
  try {
    bytes = Uint8Array.from(atob(encoded), character => character.charCodeAt(0));
  } catch {
    return { field, expected: "base64 after the comma", got: JSON.stringify(url.slice(0, 60)) };
  }
  return { id: (await storeInput(env, store, bytes, field)).id };
}

/** The upload of this content, which is ready only where its object really lies in the bucket: it may have been swept up at this very moment. */
export async function openUpload(env: Env, store: TenantStore, described: Parameters<TenantStore["openUpload"]>[0]): Promise<UploadRow> {
  const row = await store.openUpload(described);
  if (!row.ready || (await env.BUCKET.head(inputKey(store.tenant, row.sha256)))) return row;
  return (await store.reopenUpload(row.id)) ?? row;
}

/**
 * Stores a file that is in memory as an upload; one of the same content is there already or renewed.
 * @throws AtelierError invalid_request where it is not a file that is taken, with the field that it came in
 */
export async function storeInput(env: Env, store: TenantStore, bytes: Uint8Array<ArrayBuffer>, field: string): Promise<UploadRow> {
  const mediaType = mediaTypeOf(bytes);
  if (mediaType === undefined || bytes.length > MAX_INPUT_BYTES) {
    const expected = `a png, webp, jpeg or safetensors file of at most ${MAX_INPUT_BYTES} bytes`;
    throw new AtelierError("invalid_request", undefined, { errors: [{ field, expected, got: `${bytes.length} bytes` }] });
  }
  const size = checkedSize(bytes, mediaType, field);
  const sha256 = await sha256Hex(bytes);
  const now = Date.now();
  const described = {
    id: newId("upload"),
    sha256,
    bytes: bytes.length,
    media_type: mediaType,
    created_at: now,
    expires_at: inputExpiry(now),
  };
  const row = await openUpload(env, store, described);
  if (row.ready) return row;
  await env.BUCKET.put(inputKey(store.tenant, sha256), bytes, { sha256, httpMetadata: { contentType: mediaType } });
  return (await finishUpload(database(env), row.id, size)) ?? row;
}
