import { type DrizzleD1Database, drizzle } from "drizzle-orm/d1";

export type Database = DrizzleD1Database;

/** D1 behind drizzle. */
export function database(env: { readonly DB: D1Database }): Database {
  return drizzle(env.DB);
}
