import { createRoute, z } from "@hono/zod-openapi";
import { AtelierError } from "../../shared/errors.ts";
import { inputMediaTypes, type UploadRequest, type UploadView, uploadRequestSchema, uploadViewSchema } from "../../shared/upload.ts";
import { authenticateContext } from "../auth.ts";
import { isJson } from "../body.ts";
import { database } from "../database.ts";
import { type AppContext, createRouter } from "../http.ts";
import { answerOnce } from "../idempotency.ts";
import { newId } from "../ids.ts";
import { inputExpiry, openUpload, storeInput } from "../inputs.ts";
import { idempotencyHeader, idParam, json, problems, secured, signedQuery } from "../openapi.ts";
import { tenantStore } from "../tenant.ts";
import { finishUpload, inputKey, signedUpload, type UploadRow } from "../tenant-files.ts";
import { isValidUploadUrl, uploadCapability } from "../upload-urls.ts";
import { checkedSize, mediaTypeOf, storeFile } from "../uploads.ts";

/** Input files. Mounted before the API's authentication: a signed URL stands in for the key. */
export const uploadFileRoutes = createRouter();
export const uploadRoutes = createRouter();

const CAPABILITY_TTL_S = 3600;
/** Enough of a file for the size in its header, in all but pictures with a lot of metadata before it. */
const HEAD_BYTES = 256 * 1024;
const binary = { schema: { type: "string", format: "binary" } } as const;
const files = Object.fromEntries(inputMediaTypes.map(type => [type, binary]));

function pathOf(id: string): string {
  return `/v1/uploads/${id}`;
}

function view(row: UploadRow): UploadView {
  const { id, sha256, bytes, width, height, ready } = row;
  return {
    ...{ id, object: "upload", status: ready ? "ready" : "waiting", sha256, bytes, width, height, upload: null },
    media_type: z.enum(inputMediaTypes).parse(row.media_type),
    created_at: new Date(row.created_at).toISOString(),
    expires_at: new Date(row.expires_at).toISOString(),
  };
}

/** The view with the URL that takes the file, where it has not come. */
async function withCapability(context: AppContext, upload: UploadView): Promise<UploadView> {
  if (upload.status === "ready") return upload;
  const target = { origin: new URL(context.req.url).origin, path: pathOf(upload.id), mediaType: upload.media_type, ttlS: CAPABILITY_TTL_S };
  return { ...upload, upload: await uploadCapability(context.env, target) };
}

const create = createRoute({
  method: "post",
  path: "/v1/uploads",
  summary: "Upload an input picture",
  description:
    "With the file as the body (`Content-Type: image/png`, `image/webp`, `image/jpeg` or `application/x-safetensors`) it is ready at once. With a JSON description, the answer has a URL that takes the file without a key, for browsers. The same content is the same upload.",
  security: secured,
  request: { headers: idempotencyHeader, body: { content: { "application/json": { schema: uploadRequestSchema }, ...files } } },
  responses: {
    200: json(uploadViewSchema, "The upload, whose file was there already"),
    201: json(uploadViewSchema, "The upload: ready, or with the URL for its file"),
    ...problems,
  },
});

uploadRoutes.openapi(create, async context => {
  const store = tenantStore(database(context.env), context.get("principal").tenant);
  const described = isJson(context) ? context.req.valid("json") : undefined;
  const answer = await answerOnce(context, uploadViewSchema, async () => {
    const row = described
      ? await openUpload(context.env, store, openedAs(described))
      : await storeInput(context.env, store, await fileOf(context), "body");
    return { status: described && row.ready ? 200 : 201, headers: { location: pathOf(row.id) }, body: view(row) };
  });
  for (const [name, value] of Object.entries(answer.headers)) context.header(name, value);
  return context.json(await withCapability(context, answer.body), answer.status === 200 ? 200 : 201);
});

function openedAs({ sha256, bytes, media_type }: UploadRequest) {
  const now = Date.now();
  return { id: newId("upload"), sha256, bytes, media_type, created_at: now, expires_at: inputExpiry(now) };
}

async function fileOf(context: AppContext): Promise<Uint8Array<ArrayBuffer>> {
  const type = context.req.header("content-type") ?? "none";
  if (!inputMediaTypes.some(known => type.toLowerCase().startsWith(known)))
    throw new AtelierError(
      "invalid_request",
      `Expected the header Content-Type: application/json or ${inputMediaTypes.join(", ")}, got ${type}.`,
    );
  return new Uint8Array(await context.req.arrayBuffer());
}

uploadRoutes.openapi(
  createRoute({
    method: "get",
    path: "/v1/uploads/{id}",
    summary: "An upload",
    security: secured,
    request: { params: idParam("upload") },
    responses: { 200: json(uploadViewSchema, "The upload"), ...problems },
  }),
  async context => {
    const row = await tenantStore(database(context.env), context.get("principal").tenant).upload(context.req.valid("param").id);
    if (!row) throw new AtelierError("not_found");
    return context.json(await withCapability(context, view(row)), 200);
  },
);

const put = createRoute({
  method: "put",
  path: "/v1/uploads/{id}",
  summary: "Send the file of an upload",
  description: "By the URL in the upload, which needs no key. Hash, length and first bytes have to be those that were announced.",
  security: [...secured, {}],
  request: { params: idParam("upload"), query: signedQuery, body: { content: files } },
  responses: { 200: json(uploadViewSchema, "The upload, which is ready"), ...problems },
});

uploadFileRoutes.openapi(put, async context => {
  const row = await writable(context, context.req.valid("param").id, context.req.valid("query"));
  if (row.ready) return context.json(view(row), 200);
  const body = context.req.raw.body;
  if (!body) throw new AtelierError("invalid_request", "Expected the file as the body.");
  const key = inputKey(row.tenant_id, row.sha256);
  await storeFile(context.env.BUCKET, { key, bytes: row.bytes, sha256: row.sha256 }, body, head => {
    const type = mediaTypeOf(head);
    if (type !== row.media_type)
      throw new AtelierError(
        "invalid_request",
        `Expected the first bytes of a file of type ${row.media_type}, got ${type ?? "none that is taken"}.`,
      );
    return type;
  });
  const ready = await finishUpload(database(context.env), row.id, await sizeOf(context, row, key));
  if (!ready) throw new AtelierError("not_found");
  return context.json(view(ready), 200);
});

async function sizeOf(context: AppContext, { media_type, bytes }: UploadRow, key: string) {
  const { BUCKET } = context.env;
  const head = await BUCKET.get(key, { range: { offset: 0, length: Math.min(bytes, HEAD_BYTES) } });
  try {
    return checkedSize(
      head ? new Uint8Array(await head.arrayBuffer()) : new Uint8Array(),
      z.enum(inputMediaTypes).parse(media_type),
      "body",
    );
  } catch (error) {
    await BUCKET.delete(key);
    throw error;
  }
}

/** The upload that this request may fill. @throws AtelierError not_found, unauthorized, forbidden */
async function writable(context: AppContext, id: string, { expires, signature }: z.infer<typeof signedQuery>): Promise<UploadRow> {
  const db = database(context.env);
  if (signature !== undefined && !(await isValidUploadUrl(context.env, pathOf(id), expires ?? 0, signature)))
    throw new AtelierError("unauthorized", "The signed URL is not valid or has expired: ask for the upload again.");
  const row = await (signature !== undefined
    ? signedUpload(db, id)
    : tenantStore(db, (await authenticateContext(context)).tenant).upload(id));
  if (!row) throw new AtelierError("not_found");
  return row;
}
