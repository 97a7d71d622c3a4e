import { sql } from "drizzle-orm";
import { index, integer, primaryKey, sqliteTable, text, uniqueIndex } from "drizzle-orm/sqlite-core";

/** D1 holds what was accepted and what is terminal. Times are milliseconds since 1970. */

export const tenants = sqliteTable("tenants", {
  id: text().primaryKey(),
  name: text().notNull().unique(),
  created_at: integer().notNull(),
});

/** API keys: HMAC-SHA-256 of the key with the pepper named beside it. */
export const apiKeys = sqliteTable(
  "api_keys",
  {
    id: text().primaryKey(),
    tenant_id: text()
      .notNull()
      .references(() => tenants.id),
    name: text().notNull(),
    hash: text().notNull().unique(),
    pepper_id: text().notNull(),
    scopes: text({ mode: "json" }).$type<string[]>().notNull(),
    created_at: integer().notNull(),
    revoked_at: integer(),
  },
  table => [index("api_keys_tenant").on(table.tenant_id)],
);

/** Runner tokens: `<id>.<secret>`, scoped to one pool. */
export const runnerTokens = sqliteTable("runner_tokens", {
  id: text().primaryKey(),
  name: text().notNull(),
  pool: text().notNull(),
  hash: text().notNull(),
  pepper_id: text().notNull(),
  created_at: integer().notNull(),
  revoked_at: integer(),
});

export const models = sqliteTable("models", {
  name: text().primaryKey(),
  hash: text().notNull(),
  pool: text().notNull(),
  manifest: text({ mode: "json" }).notNull(),
  created_at: integer().notNull(),
});

/** What a client sees. `active` until terminal; whether an active job is queued or running only the dispatcher knows. */
export const jobs = sqliteTable(
  "jobs",
  {
    id: text().primaryKey(),
    tenant_id: text().notNull(),
    kind: text({ enum: ["generation", "training"] }).notNull(),
    pool: text().notNull(),
    model_hash: text().notNull(),
    request: text({ mode: "json" }).notNull(),
    request_id: text().notNull(),
    status: text({ enum: ["active", "succeeded", "failed", "canceled"] }).notNull(),
    error: text({ mode: "json" }),
    created_at: integer().notNull(),
    deadline_at: integer().notNull(),
    finished_at: integer(),
  },
  table => [
    index("jobs_tenant").on(table.tenant_id, table.id),
    index("jobs_live").on(table.pool, table.deadline_at).where(sql`status = 'active'`),
  ],
);

/**
 * One unit of computing: one picture, or one training. Equal requests of a tenant join the live one, except `exclusive` ones (cache: fresh).
 * `abandoned`: no job waits any more, nothing joins it, the dispatcher has still to stop it.
 */
export const executions = sqliteTable(
  "executions",
  {
    id: text().primaryKey(),
    tenant_id: text().notNull(),
    pool: text().notNull(),
    request_hash: text().notNull(),
    params: text().notNull(),
    params_sha256: text().notNull(),
    model_hash: text().notNull(),
    /** Executions with the same key may be computed as one batch. */
    batch_key: text().notNull(),
    /** What its runner may fetch: `executionInputsSchema` of edge/inputs.ts. */
    inputs: text({ mode: "json" }).notNull(),
    exclusive: integer({ mode: "boolean" }).notNull(),
    request_id: text().notNull(),
    state: text({ enum: ["active", "abandoned", "succeeded", "failed", "canceled"] }).notNull(),
    epoch: integer(),
    error: text({ mode: "json" }),
    created_at: integer().notNull(),
    finished_at: integer(),
    kind: text({ enum: ["picture", "training"] })
      .notNull()
      .default("picture"),
  },
  table => [
    uniqueIndex("executions_joinable").on(table.tenant_id, table.request_hash).where(sql`state = 'active' and exclusive = 0`),
    index("executions_live").on(table.pool, table.created_at).where(sql`state in ('active', 'abandoned')`),
  ],
);

/**
 * What an execution needs besides its model: adapters and the refiner, by content hash. Deleting one of them takes the pictures that were made with
 * it out of the cache.
 */
export const executionParts = sqliteTable(
  "execution_parts",
  {
    hash: text().notNull(),
    execution_id: text().notNull(),
  },
  table => [primaryKey({ columns: [table.hash, table.execution_id] }), index("execution_parts_execution").on(table.execution_id)],
);

/** Input files by content: the object is `inputs/{tenant}/{sha256}`. `ready` once it lies there. */
export const uploads = sqliteTable(
  "uploads",
  {
    id: text().primaryKey(),
    tenant_id: text().notNull(),
    sha256: text().notNull(),
    bytes: integer().notNull(),
    media_type: text().notNull(),
    ready: integer({ mode: "boolean" }).notNull(),
    /** Of a picture, in pixels; null until it is ready, and where its header doesn't tell. */
    width: integer(),
    height: integer(),
    created_at: integer().notNull(),
    /** Swept after this, unless it is used again before. */
    expires_at: integer().notNull(),
  },
  table => [uniqueIndex("uploads_content").on(table.tenant_id, table.sha256), index("uploads_age").on(table.expires_at)],
);

/** Adapters by name and version; other content under the same name is another version. */
export const adapters = sqliteTable(
  "adapters",
  {
    id: text().primaryKey(),
    tenant_id: text().notNull(),
    name: text().notNull(),
    version: integer().notNull(),
    hash: text().notNull(),
    visibility: text({ enum: ["private", "public"] }).notNull(),
    status: text({ enum: ["uploading", "ready", "refused"] }).notNull(),
    /** Its kind where the uploader states one: what the files are found to be has to agree. */
    stated_kind: text(),
    /** Of a textual inversion, the word that the uploader gives it. */
    token: text(),
    /** `adapterManifestSchema` of shared/adapter.ts, once it is ready. */
    manifest: text({ mode: "json" }),
    /** Why it was refused. */
    reasons: text({ mode: "json" }).$type<string[]>(),
    created_at: integer().notNull(),
  },
  table => [
    uniqueIndex("adapters_version").on(table.tenant_id, table.name, table.version),
    uniqueIndex("adapters_content").on(table.tenant_id, table.name, table.hash),
    index("adapters_hash").on(table.hash),
    index("adapters_public").on(table.name).where(sql`visibility = 'public'`),
    index("adapters_uploading").on(table.created_at).where(sql`status <> 'ready'`),
  ],
);

/** The files of an adapter; the object of each is `adapters/{tenant}/{sha256}`. */
export const adapterFiles = sqliteTable(
  "adapter_files",
  {
    adapter_id: text()
      .notNull()
      .references(() => adapters.id, { onDelete: "cascade" }),
    path: text().notNull(),
    tenant_id: text().notNull(),
    sha256: text().notNull(),
    bytes: integer().notNull(),
  },
  table => [primaryKey({ columns: [table.adapter_id, table.path] }), index("adapter_files_content").on(table.tenant_id, table.sha256)],
);

/** Pictures with captions that something is learned from. */
export const datasets = sqliteTable(
  "datasets",
  {
    id: text().primaryKey(),
    tenant_id: text().notNull(),
    name: text().notNull(),
    created_at: integer().notNull(),
  },
  table => [index("datasets_tenant").on(table.tenant_id, table.id)],
);

/** The files of a dataset by content, masks and control maps among them; the object of each is `datasets/{tenant}/{sha256}`. */
export const datasetFiles = sqliteTable(
  "dataset_files",
  {
    dataset_id: text()
      .notNull()
      .references(() => datasets.id, { onDelete: "cascade" }),
    sha256: text().notNull(),
    tenant_id: text().notNull(),
    bytes: integer().notNull(),
    media_type: text().notNull(),
    width: integer().notNull(),
    height: integer().notNull(),
  },
  table => [primaryKey({ columns: [table.dataset_id, table.sha256] }), index("dataset_files_content").on(table.tenant_id, table.sha256)],
);

/** What is learned from: a file of the dataset and what is said of it. */
export const datasetItems = sqliteTable(
  "dataset_items",
  {
    dataset_id: text()
      .notNull()
      .references(() => datasets.id, { onDelete: "cascade" }),
    sha256: text().notNull(),
    tenant_id: text().notNull(),
    caption: text().notNull(),
    split: text({ enum: ["train", "validation", "test", "prior"] }).notNull(),
    /** Other files of the dataset. */
    mask: text(),
    condition: text(),
    concept: integer().notNull(),
  },
  table => [primaryKey({ columns: [table.dataset_id, table.sha256] })],
);

/** Trainings. Job and execution have the same ULID; the files' objects are `trainings/{tenant}/{id}/{path}`. */
export const trainings = sqliteTable(
  "trainings",
  {
    id: text().primaryKey(),
    tenant_id: text().notNull(),
    name: text().notNull(),
    dataset_id: text().notNull(),
    /** `trainingReportSchema` and list of `trainingFileSchema` of shared/training.ts, once it has a result. */
    report: text({ mode: "json" }),
    files: text({ mode: "json" }),
    /** Ids of what was registered. */
    adapters: text({ mode: "json" }).$type<string[]>(),
    created_at: integer().notNull(),
  },
  table => [index("trainings_tenant").on(table.tenant_id, table.id)],
);

/** The pictures of a job, by index; a training has one row, which never gets a picture. Exactly one of execution (waiting or computed) or a cached picture stands behind each. */
export const jobPictures = sqliteTable(
  "job_pictures",
  {
    job_id: text()
      .notNull()
      .references(() => jobs.id, { onDelete: "cascade" }),
    idx: integer().notNull(),
    tenant_id: text().notNull(),
    seed: integer().notNull(),
    request_hash: text().notNull(),
    execution_id: text(),
    picture_id: text(),
    state: text({ enum: ["pending", "succeeded", "failed", "canceled"] }).notNull(),
    cached: integer({ mode: "boolean" }).notNull(),
  },
  table => [
    primaryKey({ columns: [table.job_id, table.idx] }),
    index("job_pictures_execution").on(table.execution_id),
    index("job_pictures_picture").on(table.picture_id),
  ],
);

/** Files in R2, written there before the row. One execution makes one picture. */
export const pictures = sqliteTable(
  "pictures",
  {
    id: text().primaryKey(),
    tenant_id: text().notNull(),
    execution_id: text().notNull().unique(),
    request_hash: text().notNull(),
    model_hash: text().notNull(),
    r2_key: text().notNull(),
    sha256: text().notNull(),
    bytes: integer().notNull(),
    width: integer().notNull(),
    height: integer().notNull(),
    media_type: text().notNull(),
    created_at: integer().notNull(),
  },
  table => [index("pictures_tenant").on(table.tenant_id, table.id), index("pictures_model").on(table.model_hash)],
);

/** The cache: per tenant, from the hash of a canonical picture request to the picture. */
export const cacheEntries = sqliteTable(
  "cache_entries",
  {
    tenant_id: text().notNull(),
    request_hash: text().notNull(),
    picture_id: text().notNull(),
  },
  table => [primaryKey({ columns: [table.tenant_id, table.request_hash] }), index("cache_entries_picture").on(table.picture_id)],
);

/**
 * Answers to POSTs with an Idempotency-Key. `status` is null while the first one is being answered.
 * What the POST creates carries the row's ULID, so that a request taken over after a crash creates nothing twice.
 */
export const idempotencyKeys = sqliteTable(
  "idempotency_keys",
  {
    tenant_id: text().notNull(),
    key: text().notNull(),
    path: text().notNull(),
    body_sha256: text().notNull(),
    ulid: text().notNull(),
    status: integer(),
    response: text(),
    created_at: integer().notNull(),
  },
  table => [primaryKey({ columns: [table.tenant_id, table.key] }), index("idempotency_keys_age").on(table.created_at)],
);

/** Queue messages that could not be delivered; the sweep has re-offered what was live. */
export const deadLetters = sqliteTable("dead_letters", {
  id: text().primaryKey(),
  queue: text().notNull(),
  body: text().notNull(),
  attempts: integer().notNull(),
  created_at: integer().notNull(),
});

/** Forged or altered offers, refused capabilities, and the like. Never a prompt or a secret. */
export const securityEvents = sqliteTable(
  "security_events",
  {
    id: text().primaryKey(),
    kind: text().notNull(),
    detail: text({ mode: "json" }).notNull(),
    created_at: integer().notNull(),
  },
  table => [index("security_events_age").on(table.created_at)],
);

/** How far the search for orphaned objects has come, per key prefix. */
export const sweepCursors = sqliteTable("sweep_cursors", {
  prefix: text().primaryKey(),
  /** Last key that was looked at; empty at the start of a round. */
  after: text().notNull(),
});
