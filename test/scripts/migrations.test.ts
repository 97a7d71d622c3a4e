import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { expect, test } from "vitest";

const folder = join(import.meta.dirname, "../../migrations");
const files = readdirSync(folder)
  .filter(name => name.endsWith(".sql"))
  .sort();

function apply(db: DatabaseSync, names: readonly string[]): void {
  for (const name of names)
    for (const statement of readFileSync(join(folder, name), "utf8").split("--> statement-breakpoint")) db.exec(statement);
}

test("a database with rows of before adapters is brought up to date, and keeps them", () => {
  const db = new DatabaseSync(":memory:");
  apply(db, files.slice(0, 2));
  const insert = (table: string, row: Record<string, string | number | null>) =>
    db
      .prepare(
        `INSERT INTO ${table} (${Object.keys(row).join(", ")}) VALUES (${Object.keys(row)
          .map(() => "?")
          .join(", ")})`,
      )
      .run(...Object.values(row));
  const execution = { tenant_id: "t", pool: "default", params: '{"format":"png"}', params_sha256: "p", model_hash: "m", request_id: "r" };
  insert("jobs", {
    ...{ id: "j", tenant_id: "t", kind: "generation", pool: "default", model_hash: "m", request: "{}", request_id: "r" },
    ...{ status: "active", created_at: 1, deadline_at: 2 },
  });
  insert("executions", { ...execution, id: "live", request_hash: "h", exclusive: 0, state: "active", created_at: 1 });
  insert("executions", {
    ...execution,
    id: "ended",
    request_hash: "h",
    exclusive: 0,
    state: "succeeded",
    epoch: 2,
    created_at: 1,
    finished_at: 3,
  });
  insert("job_pictures", {
    job_id: "j",
    idx: 0,
    tenant_id: "t",
    seed: 1,
    request_hash: "h",
    execution_id: "live",
    state: "pending",
    cached: 0,
  });
  const before = db.prepare("SELECT * FROM executions ORDER BY id").all();
  apply(db, files.slice(2));
  const after = db.prepare("SELECT * FROM executions ORDER BY id").all();
  const inputs = '{"files":[],"adapters":[]}';
  expect(after).toEqual(before.map(row => ({ ...row, batch_key: "h", kind: "picture", inputs })));
  expect(db.prepare("SELECT x.id FROM job_pictures p JOIN executions x ON x.id = p.execution_id").all()).toEqual([{ id: "live" }]);
  const again = () =>
    insert("executions", {
      ...execution,
      id: "joins",
      request_hash: "h",
      batch_key: "h",
      inputs,
      exclusive: 0,
      state: "active",
      created_at: 1,
    });
  expect(again).toThrow(/UNIQUE constraint failed/);
});
