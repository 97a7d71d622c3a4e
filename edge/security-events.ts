import { ulid } from "ulid";
import { database } from "./database.ts";
import { errorFields, log } from "./log.ts";
import { securityEvents } from "./schema.ts";

/** What an operator should know of. Rows are shown by the admin API and deleted after a while (edge/orphans.ts). */
export type SecurityEventKind = "offer_refused" | "capability_refused" | "capability_misused";

/** Stores and logs a security event. `detail` holds ids, reasons and paths: never a token, a secret or a prompt. A failing database loses only the row. */
export async function recordSecurityEvent(
  env: { readonly DB: D1Database },
  kind: SecurityEventKind,
  detail: Readonly<Record<string, string | number>>,
): Promise<void> {
  log("warn", "security event", { kind, ...detail });
  try {
    await database(env).insert(securityEvents).values({ id: ulid(), kind, detail, created_at: Date.now() });
  } catch (error) {
    log("error", "security event not stored", { kind, ...errorFields(error) });
  }
}
