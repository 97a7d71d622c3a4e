import { cloudflareTest, readD1Migrations } from "@cloudflare/vitest-plugin";
import { defineConfig } from "vitest/config";
import { createSecrets } from "./scripts/secrets.ts";

export default defineConfig({
  test: {
    projects: [
      {
        // The Worker's tests run inside workerd, with real D1, R2, Queues and Durable Objects.
        plugins: [
          cloudflareTest(async () => ({
            main: "./edge/index.ts",
            wrangler: { configPath: "./wrangler.toml" },
            miniflare: { bindings: { ...createSecrets(), TEST_MIGRATIONS: await readD1Migrations("migrations") } },
          })),
        ],
        test: { name: "edge", include: ["test/edge/**/*.test.ts"], setupFiles: ["test/edge/setup.ts"], testTimeout: 30_000 },
      },
      {
        test: { name: "node", include: ["test/{gpu-runner,shared,scripts,studies}/**/*.test.ts"], testTimeout: 60_000 },
      },
      {
        // The product as a user starts it: real processes, real sockets. One file at a time, since each brings up the whole.
        test: { name: "e2e", include: ["test/e2e/**/*.test.ts"], testTimeout: 180_000, hookTimeout: 120_000, fileParallelism: false },
      },
    ],
  },
});
