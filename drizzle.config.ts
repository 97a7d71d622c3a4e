import { defineConfig } from "drizzle-kit";

/** `npm run migration` writes the next migration from the difference between edge/schema.ts and the last one. */
export default defineConfig({ dialect: "sqlite", schema: "./edge/schema.ts", out: "./migrations", casing: "snake_case" });
