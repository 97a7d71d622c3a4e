import { and, eq } from "drizzle-orm";
import type { z } from "zod";
import { AtelierError } from "../../shared/errors.ts";
import { allPartsSchema, PART_BYTES } from "../../shared/file-parts.ts";
import { sha256Schema } from "../../shared/names.ts";
import {
  checkpointKey,
  type ProgressReport,
  progressReportSchema,
  runnerPaths,
  stagingKey,
  type TrainingProgress,
  trainingProgressSchema,
} from "../../shared/protocol.ts";
import { type TrainingFile, trainingMediaType } from "../../shared/training.ts";
import { bearerToken, verifyRunnerToken } from "../auth.ts";
import { authorizeCapability } from "../capability.ts";
import { database } from "../database.ts";
import { progressKey } from "../dispatcher/grants.ts";
import { RUNNER_TOKEN_HEADER } from "../dispatcher/sockets.ts";
import type { Env } from "../env.ts";
import { fieldErrors } from "../field-errors.ts";
import { beginParts, completeParts, putPart } from "../file-parts.ts";
import { type AppContext, createRouter } from "../http.ts";
import { log } from "../log.ts";
import { jobPictures } from "../schema.ts";
import { latestCheckpoint } from "../training-files.ts";
import { mediaTypeOf, readAtMost, storeFile, storePicture } from "../uploads.ts";

/** What runners use: each request carries its own token, none of them an API key. */
export const runnerRoutes = createRouter();

/** Header with the file's SHA-256, 64 hexadecimal digits. */
const SHA256_HEADER = "x-atelier-sha256";
/** Most jobs that one progress report is handed to; more than that see the end, not the way. */
const MAX_AUDIENCE = 100;
/** Most bytes of the list that ends an upload in parts. */
const MAX_PARTS_BYTES = 512 * 1024;

runnerRoutes.put("/runner/v1/objects/:key{.+}", async context => {
  const key = context.req.param("key");
  const { max_bytes, execution, epoch } = await authorizeCapability(context, "PUT", key);
  if (context.req.query("upload_id") !== undefined) return putFilePart(context, key, max_bytes);
  const announced = { key, bytes: contentLength(context, max_bytes), sha256: announcedHash(context) };
  const body = context.req.raw.body;
  if (!body) throw new AtelierError("invalid_request", "Expected a body.");
  if (key === stagingKey(execution, epoch)) await storePicture(context.env.BUCKET, announced, body);
  else await storeFile(context.env.BUCKET, announced, body, head => trainingFileType(key, head));
  log("info", "result uploaded", { request_id: context.get("requestId"), execution, epoch, bytes: announced.bytes });
  return context.body(null, 201);
});

/** Begins an upload in parts, or with `upload_id` ends it: what a training made may be larger than a request's body. */
runnerRoutes.post("/runner/v1/objects/:key{.+}", async context => {
  const key = context.req.param("key");
  const { max_bytes, execution, epoch } = await authorizeCapability(context, "PUT", key);
  if (key === stagingKey(execution, epoch)) throw new AtelierError("invalid_request", "Expected a picture in one piece.");
  const uploadId = context.req.query("upload_id");
  if (uploadId === undefined) {
    const announced = { sha256: announcedHash(context), mediaType: trainingMediaType(key) };
    return context.json({ upload_id: await beginParts(context.env.BUCKET, key, announced) }, 201);
  }
  const all = checked(allPartsSchema, parsedJson(await readAtMost(context.req.raw.body, MAX_PARTS_BYTES)));
  if (all.bytes > max_bytes) throw new AtelierError("payload_too_large", `Expected at most ${max_bytes} bytes, got ${all.bytes}.`);
  await completeParts(context.env.BUCKET, { key, uploadId, ...all });
  log("info", "result uploaded", { request_id: context.get("requestId"), execution, epoch, bytes: all.bytes });
  return context.body(null, 201);
});

async function putFilePart(context: AppContext, key: string, maxBytes: number): Promise<Response> {
  const { upload_id: uploadId = "", part: number = "" } = context.req.query();
  const part = /^[1-9]\d{0,3}$/.test(number) ? Number(number) : Number.NaN;
  const last = Math.ceil(maxBytes / PART_BYTES);
  if (!(part <= last)) throw new AtelierError("invalid_request", `part: expected a number from 1 to ${last}, got ${number || "nothing"}.`);
  const announced = { bytes: contentLength(context, Math.min(maxBytes, PART_BYTES)), sha256: announcedHash(context) };
  const body = context.req.raw.body;
  if (!body) throw new AtelierError("invalid_request", "Expected a body.");
  return context.json(await putPart(context.env.BUCKET, { key, uploadId, part, ...announced }, body), 201);
}

/** The type of a checkpoint or of a training's file, whose first bytes have to be what its name says. */
function trainingFileType(key: string, head: Uint8Array): TrainingFile["media_type"] {
  const type = trainingMediaType(key);
  if ((type === "application/x-safetensors" || type === "image/png") && mediaTypeOf(head) !== type)
    throw new AtelierError("invalid_request", `Expected the first bytes of a file of type ${type}.`);
  return type;
}

/** Where an object that a capability names lies: the latest checkpoint is looked for. */
async function objectKey(bucket: R2Bucket, execution: string, key: string): Promise<string> {
  return key === checkpointKey(execution) ? ((await latestCheckpoint(bucket, execution))?.key ?? key) : key;
}

runnerRoutes.get("/runner/v1/objects/:key{.+}", async context => {
  const key = context.req.param("key");
  const { max_bytes, execution } = await authorizeCapability(context, "GET", key);
  const object = await context.env.BUCKET.get(await objectKey(context.env.BUCKET, execution, key));
  if (!object) {
    if (key === checkpointKey(execution)) throw new AtelierError("not_found", "There is no checkpoint yet.");
    log("warn", "an input's object is gone", { request_id: context.get("requestId"), execution });
    throw new AtelierError("not_found", "The file was deleted.");
  }
  if (object.size > max_bytes) {
    await object.body.cancel();
    throw new AtelierError("conflict", `Expected at most ${max_bytes} bytes, got ${object.size}.`);
  }
  return context.body(object.body, 200, {
    "content-type": "application/octet-stream",
    "content-length": String(object.size),
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
  });
});

runnerRoutes.post("/runner/v1/executions/:execution/progress", async context => {
  const execution = context.req.param("execution");
  const { max_bytes } = await authorizeCapability(context, "POST", progressKey(execution));
  const report = parseReport(await readAtMost(context.req.raw.body, max_bytes));
  await tellJobs(context.env, execution, report);
  return context.body(null, 204);
});

runnerRoutes.get(runnerPaths.socket, async context => {
  if (context.req.header("upgrade")?.toLowerCase() !== "websocket")
    throw new AtelierError("invalid_request", "Expected the header Upgrade: websocket.");
  const { id, pool } = await verifyRunnerToken(context.env, bearerToken(context, "runner token"));
  // Made anew, so that nothing that came in can pass for what this Worker verified, and the secret goes no further.
  const headers = { upgrade: "websocket", [RUNNER_TOKEN_HEADER]: id, "x-request-id": context.get("requestId") };
  return context.env.DISPATCHER.getByName(pool).fetch(context.req.url, { headers });
});

function contentLength(context: AppContext, max: number): number {
  const header = context.req.header("content-length") ?? "";
  if (!/^[1-9]\d{0,15}$/.test(header))
    throw new AtelierError("invalid_request", `Expected the header Content-Length with 1 to ${max} bytes, got ${header || "nothing"}.`);
  const bytes = Number(header);
  if (bytes > max) throw new AtelierError("payload_too_large", `Expected at most ${max} bytes, got ${bytes}.`);
  return bytes;
}

function announcedHash(context: AppContext): string {
  const hash = sha256Schema.safeParse(context.req.header(SHA256_HEADER));
  if (!hash.success) throw new AtelierError("invalid_request", `Expected the header ${SHA256_HEADER} with 64 hexadecimal digits.`);
  return hash.data;
}

type Report = ProgressReport | TrainingProgress;

function parseReport(text: string): Report {
  const input = parsedJson(text);
  const isTraining = typeof input === "object" && input !== null && "events" in input;
  return isTraining ? checked(trainingProgressSchema, input) : checked(progressReportSchema, input);
}

function parsedJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new AtelierError("invalid_json");
  }
}

function checked<T>(schema: z.ZodType<T>, input: unknown): T {
  const result = schema.safeParse(input);
  if (!result.success) throw new AtelierError("invalid_request", undefined, { errors: fieldErrors(result.error, input) });
  return result.data;
}

/** Appends progress to the events of every job that waits for the execution. One that cannot be told now learns of the next step. */
async function tellJobs(env: Env, execution: string, report: Report): Promise<void> {
  const waiting = await database(env)
    .select({ job: jobPictures.job_id, index: jobPictures.idx })
    .from(jobPictures)
    .where(and(eq(jobPictures.execution_id, execution), eq(jobPictures.state, "pending")))
    .limit(MAX_AUDIENCE);
  const events = (index: number) => ("events" in report ? report.events : [{ type: "progress", execution, index, ...report }]);
  const told = await Promise.allSettled(
    waiting.map(({ job, index }) => env.JOB_EVENTS.getByName(job).append({ v: 1, job, events: events(index) })),
  );
  const failed = told.filter(({ status }) => status === "rejected").length;
  if (failed > 0) log("warn", "progress not told to every job", { execution, jobs: waiting.length, failed });
}
