import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { getPlatformProxy, unstable_readConfig as readConfig } from "wrangler";
import type { LocalState } from "./state.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** Applies the D1 migrations that are missing, in the same table of record as `wrangler d1 migrations apply`, without the seconds that it costs. */
export async function migrate(state: LocalState): Promise<void> {
  const { name, compatibility_date, d1_databases } = readConfig({ config: join(root, "wrangler.toml") });
  // The database alone: a proxy of the whole configuration warns about Durable Objects that it can't run.
  const configPath = state.path("migrate.json");
  writeFileSync(configPath, JSON.stringify({ name, compatibility_date, d1_databases }));
  const proxy = await getPlatformProxy<{ DB: Database }>({ configPath, persist: { path: state.path("edge/v3") }, envFiles: [] });
  try {
    await applyMigrations(proxy.env.DB, join(root, "migrations"));
  } finally {
    await proxy.dispose();
  }
}

/** The part of D1's interface that migrations need. */
interface Database {
  prepare(sql: string): { bind(...values: unknown[]): Statement; run(): Promise<unknown>; all<Row>(): Promise<{ results: Row[] }> };
  batch(statements: Statement[]): Promise<unknown>;
}
type Statement = object;

async function applyMigrations(db: Database, folder: string): Promise<void> {
  await db
    .prepare(
      "CREATE TABLE IF NOT EXISTS d1_migrations (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL)",
    )
    .run();
  const applied = new Set((await db.prepare("SELECT name FROM d1_migrations").all<{ name: string }>()).results.map(({ name }) => name));
  const files = readdirSync(folder)
    .filter(name => name.endsWith(".sql"))
    .sort();
  for (const name of files.filter(file => !applied.has(file))) {
    const statements = readFileSync(join(folder, name), "utf8").split("--> statement-breakpoint");
    await db.batch([
      ...statements.map(sql => db.prepare(sql) as Statement),
      db.prepare("INSERT INTO d1_migrations (name) VALUES (?)").bind(name),
    ]);
  }
}
