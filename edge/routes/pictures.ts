import { createRoute } from "@hono/zod-openapi";
import { AtelierError } from "../../shared/errors.ts";
import { type ByteRange, fileEnding, isValidPictureUrl, matchesEtag, parseRange } from "../artifacts.ts";
import { authenticateContext } from "../auth.ts";
import { database } from "../database.ts";
import { type AppContext, createRouter } from "../http.ts";
import { log } from "../log.ts";
import { idParam, problems, secured, signedQuery } from "../openapi.ts";
import { type PictureRow, signedPicture, tenantStore } from "../tenant.ts";

/** Mounted before the API's authentication: a signed URL stands in for the key. */
export const pictureRoutes = createRouter();

const file = { content: { "image/png": {}, "image/webp": {}, "image/jpeg": {} } };
const getPicture = createRoute({
  method: "get",
  path: "/v1/pictures/{id}",
  summary: "A picture's file",
  description: "With the key, or without it by the signed URL in a generation. The entity tag is the file's SHA-256.",
  security: [...secured, {}],
  request: {
    params: idParam("picture"),
    query: signedQuery,
  },
  responses: {
    200: { description: "The file", ...file },
    206: { description: "The range that was asked for", ...file },
    304: { description: "The client has it already" },
    ...problems,
  },
});

pictureRoutes.openapi(getPicture, async context => {
  const { id } = context.req.valid("param");
  const { expires, signature } = context.req.valid("query");
  const row = await readable(context, id, expires, signature);
  const etag = `"${row.sha256}"`;
  const headers = new Headers({
    etag,
    "cache-control": "private, immutable, max-age=31536000",
    "content-type": row.media_type,
    "content-disposition": `inline; filename="${row.id}.${fileEnding(row.media_type)}"`,
    "accept-ranges": "bytes",
    "cross-origin-resource-policy": "cross-origin",
  });
  if (matchesEtag(context.req.header("if-none-match"), etag)) return new Response(null, { status: 304, headers });
  const ifRange = context.req.header("if-range");
  const range = wantedRange(context, ifRange === undefined || ifRange === etag ? context.req.header("range") : undefined, row.bytes);
  const body = await open(context, row, range);
  headers.set("content-length", String(range?.length ?? row.bytes));
  if (range) headers.set("content-range", `bytes ${range.offset}-${range.offset + range.length - 1}/${row.bytes}`);
  return new Response(body, { status: range ? 206 : 200, headers });
});

/** The row of a picture that this request may see. @throws AtelierError not_found, unauthorized */
async function readable(context: AppContext, id: string, expires: number | undefined, signature: string | undefined): Promise<PictureRow> {
  const db = database(context.env);
  if (signature !== undefined) {
    const valid = expires !== undefined && (await isValidPictureUrl(context.env, id, expires, signature));
    if (!valid) throw new AtelierError("unauthorized", "The signed URL is not valid or has expired: ask for the generation again.");
  }
  const row = await (signature !== undefined
    ? signedPicture(db, id)
    : tenantStore(db, (await authenticateContext(context)).tenant).picture(id));
  if (!row) throw new AtelierError("not_found");
  return row;
}

function wantedRange(context: AppContext, header: string | undefined, bytes: number): ByteRange | undefined {
  try {
    return parseRange(header, bytes);
  } catch (error) {
    context.header("content-range", `bytes */${bytes}`);
    throw error;
  }
}

/** The object's content; null for HEAD. */
async function open(context: AppContext, { id, r2_key }: PictureRow, range: ByteRange | undefined): Promise<ReadableStream | null> {
  const { BUCKET } = context.env;
  if (context.req.method === "HEAD" && (await BUCKET.head(r2_key))) return null;
  const object = await BUCKET.get(r2_key, range && { range });
  if (object === null) {
    log("error", "a picture's object is gone", { request_id: context.get("requestId"), picture: id });
    throw new AtelierError("not_found", "The picture's file is gone.");
  }
  return object.body;
}
