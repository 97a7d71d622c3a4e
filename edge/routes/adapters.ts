import { createRoute, z } from "@hono/zod-openapi";
import {
  type AdapterUpload,
  type AdapterView,
  adapterFormSchema,
  adapterUploadSchema,
  adapterViewSchema,
} from "../../shared/adapter-resource.ts";
import { AtelierError } from "../../shared/errors.ts";
import { idSchema, sameUlid, sha256Schema } from "../../shared/names.ts";
import { adapterView, completeAdapter, filePath, nameOfFile, openAdapter, storeFormFiles, withCapabilities } from "../adapter-uploads.ts";
import { removeFiles } from "../artifacts.ts";
import { authenticateContext } from "../auth.ts";
import { isJson } from "../body.ts";
import { database } from "../database.ts";
import { fieldErrors } from "../field-errors.ts";
import { type AppContext, createRouter } from "../http.ts";
import { type Answer, answerOnce } from "../idempotency.ts";
import { log } from "../log.ts";
import { idempotencyHeader, idParam, json, problems, secured, signedQuery } from "../openapi.ts";
import { type TenantStore, tenantStore } from "../tenant.ts";
import { type AdapterFileRow, adapterKey, type StoredAdapter, signedAdapterFile } from "../tenant-files.ts";
import { isValidUploadUrl } from "../upload-urls.ts";
import { storeFile } from "../uploads.ts";

/** Adapters. The first are mounted before the API's authentication: a signed URL stands in for the key. */
export const adapterFileRoutes = createRouter();
export const adapterRoutes = createRouter();

function storeOf(context: AppContext): TenantStore {
  return tenantStore(database(context.env), context.get("principal").tenant);
}

function shown(context: AppContext, view: AdapterView): Promise<AdapterView> {
  return withCapabilities(context.env, view, context.get("principal").tenant, new URL(context.req.url).origin);
}

const formSchema = adapterFormSchema.extend({ name: adapterFormSchema.shape.name.optional() });
const file = { type: "string", format: "binary" } as const;
const text = { type: "string" } as const;
// Widely typed, so that the JSON body alone is what the route's types tell.
const form: Readonly<Record<string, { schema: { type: "object"; properties: Record<string, typeof file | typeof text> } }>> = {
  "multipart/form-data": { schema: { type: "object", properties: { file, name: text, visibility: text, kind: text, token: text } } },
};
const create = createRoute({
  method: "post",
  path: "/v1/adapters",
  summary: "Upload an adapter",
  description:
    "With a JSON description, the answer has for each file a URL that takes it without a key; after the last one the adapter is `ready` or `refused`. With a form (`multipart/form-data`, field `file`, up to 24 MiB) it is ready at once. The same content under the same name is the same version; other content is a new one.",
  security: secured,
  request: {
    headers: idempotencyHeader,
    body: {
      content: {
        "application/json": { schema: adapterUploadSchema },
        ...form,
      },
    },
  },
  responses: {
    200: json(adapterViewSchema, "The adapter, which was there already"),
    201: json(adapterViewSchema, "The adapter: ready, or with the URLs for its files"),
    ...problems,
  },
});

adapterRoutes.openapi(create, async context => {
  const described = isJson(context) ? context.req.valid("json") : undefined;
  const principal = context.get("principal");
  const answer = await answerOnce(context, adapterViewSchema, async (ulid): Promise<Answer<AdapterView>> => {
    const id = sameUlid(`_${ulid}`, "adapter");
    const stored = await openAdapter(context.env, principal, id, described ?? (await formOf(context)));
    const { adapter } = stored;
    log("info", "adapter opened", { request_id: context.get("requestId"), adapter: adapter.id, status: adapter.status });
    if (adapter.status === "refused") throw new AtelierError("adapter_refused", adapter.reasons?.join("; "));
    return {
      status: adapter.id === id ? 201 : 200,
      headers: { location: `/v1/adapters/${adapter.id}` },
      body: adapterView(stored, principal.tenant),
    };
  });
  for (const [name, value] of Object.entries(answer.headers)) context.header(name, value);
  return context.json(await shown(context, answer.body), answer.status === 200 ? 200 : 201);
});

/** A form with files as the description that a client would have sent, its files stored. */
async function formOf(context: AppContext): Promise<AdapterUpload> {
  const type = context.req.header("content-type") ?? "none";
  if (!/^multipart\/form-data\s*;/i.test(type))
    throw new AtelierError("invalid_request", `Expected the header Content-Type: application/json or multipart/form-data, got ${type}.`);
  const form = await context.req.formData().catch(() => {
    throw new AtelierError("invalid_request", "The form does not parse.");
  });
  const files = form.getAll("file").filter(entry => entry instanceof File);
  const fields = Object.fromEntries([...form.entries()].filter(([, value]) => typeof value === "string"));
  const parsed = formSchema.safeParse(fields);
  if (!parsed.success) throw new AtelierError("invalid_request", undefined, { errors: fieldErrors(parsed.error, fields) });
  const stored = await storeFormFiles(context.env, context.get("principal").tenant, files);
  return { ...parsed.data, name: parsed.data.name ?? nameOfFile(files[0]!.name), files: stored };
}

const MAX_PAGE = 50;
adapterRoutes.openapi(
  createRoute({
    method: "get",
    path: "/v1/adapters",
    summary: "List adapters, newest first: your own and public ones",
    security: secured,
    request: {
      query: z.strictObject({
        limit: z.coerce.number().int().min(1).max(MAX_PAGE).default(20),
        cursor: idSchema("adapter").optional().describe("next_cursor of the page before"),
      }),
    },
    responses: {
      200: json(
        z.object({
          object: z.literal("list"),
          data: z.array(adapterViewSchema),
          next_cursor: idSchema("adapter").nullable().describe("null on the last page"),
        }),
        "A page of adapters",
      ),
      ...problems,
    },
  }),
  async context => {
    const { limit, cursor } = context.req.valid("query");
    const store = storeOf(context);
    const found = await store.listAdapters(limit + 1, cursor);
    const data = found.slice(0, limit).map(stored => adapterView(stored, store.tenant));
    return context.json({ object: "list" as const, data, next_cursor: found.length > limit ? data.at(-1)!.id : null }, 200);
  },
);

async function adapterOf(context: AppContext, id: string): Promise<StoredAdapter> {
  const found = await storeOf(context).adapter(id);
  if (!found) throw new AtelierError("not_found");
  return found;
}

adapterRoutes.openapi(
  createRoute({
    method: "get",
    path: "/v1/adapters/{id}",
    summary: "An adapter: what it is, or what is missing",
    security: secured,
    request: { params: idParam("adapter") },
    responses: { 200: json(adapterViewSchema, "The adapter"), ...problems },
  }),
  async context => {
    const stored = await adapterOf(context, context.req.valid("param").id);
    return context.json(await shown(context, adapterView(stored, context.get("principal").tenant)), 200);
  },
);

adapterRoutes.openapi(
  createRoute({
    method: "post",
    path: "/v1/adapters/{id}/complete",
    summary: "Have an adapter looked at whose files have come",
    description: "Not needed after the last file, which does the same.",
    security: secured,
    request: { params: idParam("adapter"), headers: idempotencyHeader },
    responses: { 200: json(adapterViewSchema, "The adapter: ready, refused, or with the URLs for files that are missing"), ...problems },
  }),
  async context => {
    const { id } = context.req.valid("param");
    const store = storeOf(context);
    const answer = await answerOnce(context, adapterViewSchema, async () => {
      const stored = await adapterOf(context, id);
      const completed = stored.adapter.tenant_id === store.tenant ? await completeAdapter(context.env, store, stored) : stored;
      return { status: 200, headers: {}, body: adapterView(completed, store.tenant) };
    });
    for (const [name, value] of Object.entries(answer.headers)) context.header(name, value);
    return context.json(await shown(context, answer.body), 200);
  },
);

adapterRoutes.openapi(
  createRoute({
    method: "delete",
    path: "/v1/adapters/{id}",
    summary: "Delete an adapter",
    description:
      "What was made with it leaves the cache; pictures that a generation shows stay with it. A job that still needs its files fails.",
    security: secured,
    request: { params: idParam("adapter") },
    responses: { 204: { description: "Deleted" }, ...problems },
  }),
  async context => {
    const keys = await storeOf(context).deleteAdapter(context.req.valid("param").id);
    if (!keys) throw new AtelierError("not_found");
    await removeFiles(context.env, keys);
    return context.body(null, 204);
  },
);

const put = createRoute({
  method: "put",
  path: "/v1/adapters/{id}/files/{sha256}",
  summary: "Send a file of an adapter",
  description: "By the URL in the adapter, which needs no key. Hash and length have to be those that were announced.",
  security: [...secured, {}],
  request: {
    params: idParam("adapter").extend({ sha256: sha256Schema }),
    query: signedQuery,
    body: { content: { "application/octet-stream": { schema: { type: "string", format: "binary" } } } },
  },
  responses: { 200: json(adapterViewSchema, "The adapter; after its last file ready or refused"), ...problems },
});

adapterFileRoutes.openapi(put, async context => {
  const { id, sha256 } = context.req.valid("param");
  const file = await writable(context, id, sha256, context.req.valid("query"));
  const body = context.req.raw.body;
  if (!body) throw new AtelierError("invalid_request", "Expected the file as the body.");
  const { tenant_id: tenant, bytes } = file;
  await storeFile(context.env.BUCKET, { key: adapterKey(tenant, sha256), bytes, sha256 }, body, () => "application/octet-stream");
  const store = tenantStore(database(context.env), tenant);
  const stored = await store.adapter(id);
  if (!stored) throw new AtelierError("not_found");
  const completed = await completeAdapter(context.env, store, stored);
  log("info", "adapter file uploaded", { request_id: context.get("requestId"), adapter: id, bytes, status: completed.adapter.status });
  return context.json(adapterView(completed, tenant), 200);
});

/** The file that this request may send. @throws AtelierError not_found, unauthorized, forbidden */
async function writable(
  context: AppContext,
  id: string,
  sha256: string,
  { expires, signature }: z.infer<typeof signedQuery>,
): Promise<AdapterFileRow> {
  const db = database(context.env);
  const signed = signature !== undefined;
  if (signed && !(await isValidUploadUrl(context.env, filePath(id, sha256), expires ?? 0, signature)))
    throw new AtelierError("unauthorized", "The signed URL is not valid or has expired: ask for the adapter again.");
  const tenant = signed ? undefined : (await authenticateContext(context)).tenant;
  const file = await signedAdapterFile(db, id, sha256);
  if (!file || (tenant !== undefined && file.tenant_id !== tenant)) throw new AtelierError("not_found");
  return file;
}
