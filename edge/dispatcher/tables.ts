import type { ExecutionKind } from "../../shared/signing.ts";

/**
 * What a dispatcher keeps in its SQLite: everything that it needs after a restart. Times are milliseconds since 1970.
 *
 *   queued -> leased -> committing -> done        committing: an outcome is persisted and has still to be settled in D1
 *      ^________|_____________|                   (the lease was lost, or what was committed could not be taken)
 *
 * A row in state `done` is a tombstone: no redelivered offer brings it back.
 */
const migrations = [
  `
  CREATE TABLE executions (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,      -- first in, first out within a tenant; a requeued execution keeps its place
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,                       -- '' where it was abandoned before it was offered
    params_sha256 TEXT NOT NULL,
    model_hash TEXT NOT NULL,
    engine_version INTEGER NOT NULL,
    request_id TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'leased', 'committing', 'done')),
    front INTEGER NOT NULL DEFAULT 0,           -- 1: its turn was taken without an attempt, so it is next
    epoch INTEGER NOT NULL DEFAULT 0,           -- of its latest lease
    attempts INTEGER NOT NULL DEFAULT 0,        -- lost ones
    abandoned INTEGER NOT NULL DEFAULT 0,       -- 1: no job waits any more
    outcome TEXT CHECK (outcome IN ('succeeded', 'failed', 'canceled')),
    detail TEXT,                                -- JSON: the result, or the error
    winner TEXT,                                -- instance whose result it is
    settle_at INTEGER,                          -- when to try (again) to settle
    settle_failures INTEGER NOT NULL DEFAULT 0,
    done_at INTEGER,
    CHECK ((state IN ('committing', 'done')) = (outcome IS NOT NULL))
  );
  CREATE INDEX executions_by_tenant ON executions (state, tenant, seq);
  CREATE INDEX executions_waiting ON executions (tenant, engine_version, model_hash, seq) WHERE state = 'queued';
  CREATE INDEX executions_front ON executions (seq) WHERE state = 'queued' AND front = 1;
  CREATE INDEX executions_settle ON executions (settle_at) WHERE state = 'committing';
  CREATE INDEX executions_age ON executions (done_at) WHERE state = 'done';

  CREATE TABLE leases (
    execution TEXT PRIMARY KEY,                 -- at most one lease of an execution
    epoch INTEGER NOT NULL,
    instance TEXT NOT NULL,
    ack_deadline INTEGER NOT NULL,
    accepted_at INTEGER,                        -- null: granted, not accepted
    last_heartbeat INTEGER NOT NULL,
    counter INTEGER NOT NULL DEFAULT 0,         -- steps of the model thread
    counter_changed_at INTEGER NOT NULL,
    step_ms INTEGER NOT NULL DEFAULT 0,         -- slowest step seen
    attempt_deadline INTEGER NOT NULL
  );
  CREATE INDEX leases_by_instance ON leases (instance);

  CREATE TABLE instances (
    id TEXT PRIMARY KEY,
    token TEXT NOT NULL,
    provider TEXT NOT NULL,
    engine_version INTEGER NOT NULL,
    models TEXT NOT NULL,                       -- JSON list of content hashes
    ready INTEGER NOT NULL,                     -- grants that it takes now
    connected INTEGER NOT NULL,
    last_seen INTEGER NOT NULL,
    last_granted INTEGER NOT NULL DEFAULT 0,
    paused_until INTEGER NOT NULL DEFAULT 0
  );

  CREATE TABLE tenants (
    id TEXT PRIMARY KEY,
    served INTEGER NOT NULL                     -- number of the latest grant to it; 0: none yet, and then the first to come (rowid) is first
  );
  CREATE INDEX tenants_served ON tenants (served);

  CREATE TABLE revoked_tokens (id TEXT PRIMARY KEY);

  CREATE TABLE pool (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    grants INTEGER NOT NULL DEFAULT 0,          -- made so far
    sweep_at INTEGER,                           -- null: nothing is alive
    watches INTEGER NOT NULL DEFAULT 0          -- jobs that were announced so far
  );
  INSERT INTO pool (only_row) VALUES (1);
  `,
  `
  ALTER TABLE executions ADD COLUMN batch_key TEXT NOT NULL DEFAULT '';    -- may be computed with others of the same key; '': alone
  ALTER TABLE executions ADD COLUMN batch_size INTEGER NOT NULL DEFAULT 1; -- of its latest grant
  ALTER TABLE executions ADD COLUMN adapters TEXT NOT NULL DEFAULT '[]';   -- JSON list of content hashes
  ALTER TABLE executions ADD COLUMN overtaken INTEGER NOT NULL DEFAULT 0;  -- how often a later one of its tenant went first, for affinity
  CREATE INDEX executions_batch ON executions (batch_key, seq) WHERE state = 'queued' AND batch_key <> '';

  ALTER TABLE instances ADD COLUMN max_batch INTEGER NOT NULL DEFAULT 1;
  ALTER TABLE instances ADD COLUMN resident TEXT NOT NULL DEFAULT '[]';    -- JSON list of content hashes: models and adapters in its memory

  ALTER TABLE leases ADD COLUMN grant_number INTEGER NOT NULL DEFAULT 0;   -- leases of one grant were given together
  UPDATE leases SET grant_number = -rowid;
  CREATE INDEX leases_by_grant ON leases (grant_number);
  `,
  `
  ALTER TABLE executions ADD COLUMN refiner_hash TEXT NOT NULL DEFAULT ''; -- the second model that its runner needs; '': none
  DROP INDEX executions_waiting;
  CREATE INDEX executions_waiting ON executions (tenant, engine_version, model_hash, seq, refiner_hash) WHERE state = 'queued';
  `,
  `
  ALTER TABLE executions ADD COLUMN kind TEXT NOT NULL DEFAULT 'picture';
  ALTER TABLE executions ADD COLUMN deadline_at INTEGER NOT NULL DEFAULT 0; -- of a training, which one attempt may use up whole; 0: none
  ALTER TABLE instances ADD COLUMN trains INTEGER NOT NULL DEFAULT 0;       -- 1: takes trainings
  DROP INDEX executions_waiting;
  CREATE INDEX executions_waiting ON executions (tenant, engine_version, model_hash, seq, refiner_hash, kind) WHERE state = 'queued';
  `,
] as const;

export type ExecutionState = "queued" | "leased" | "committing" | "done";
export type Outcome = "succeeded" | "failed" | "canceled";

export type ExecutionRow = {
  seq: number;
  id: string;
  tenant: string;
  params_sha256: string;
  model_hash: string;
  refiner_hash: string;
  engine_version: number;
  request_id: string;
  state: ExecutionState;
  front: number;
  epoch: number;
  attempts: number;
  abandoned: number;
  outcome: Outcome | null;
  detail: string | null;
  winner: string | null;
  settle_at: number | null;
  settle_failures: number;
  done_at: number | null;
  batch_key: string;
  batch_size: number;
  adapters: string;
  overtaken: number;
  kind: ExecutionKind;
  deadline_at: number;
};

export type LeaseRow = {
  execution: string;
  epoch: number;
  instance: string;
  ack_deadline: number;
  accepted_at: number | null;
  last_heartbeat: number;
  counter: number;
  counter_changed_at: number;
  step_ms: number;
  attempt_deadline: number;
  grant_number: number;
};

export type InstanceRow = {
  id: string;
  token: string;
  provider: string;
  engine_version: number;
  models: string;
  ready: number;
  connected: number;
  last_seen: number;
  last_granted: number;
  paused_until: number;
  max_batch: number;
  resident: string;
  trains: number;
};

/** Creates the tables of a new object, or brings those of an older one up to date. `upTo`: as a version knew them that had so many migrations. */
export function migrate(sql: SqlStorage, upTo: number = migrations.length): void {
  sql.exec("CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY)");
  const { version } = sql.exec<{ version: number }>("SELECT COUNT(*) AS version FROM migrations").one();
  for (const [index, migration] of migrations.slice(0, upTo).entries()) {
    if (index < version) continue;
    sql.exec(migration);
    sql.exec("INSERT INTO migrations VALUES (?)", index);
  }
}

/** The first row of a query, if it has one. */
export function first<T extends Record<string, SqlStorageValue>>(sql: SqlStorage, query: string, ...bindings: unknown[]): T | undefined {
  return sql.exec<T>(query, ...bindings).toArray()[0];
}
