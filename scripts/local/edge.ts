import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { freePort, type Running, requireFreePort, startProcess, untilReady } from "./processes.ts";
import type { LocalState } from "./state.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

export interface Edge extends Running {
  readonly url: string;
}

/**
 * Starts the Worker in workerd through `wrangler dev`, with its state in the given folder, and waits until it answers.
 * `entry`: another module than wrangler.toml's `main`, such as the one that counts calls.
 */
export async function startEdge(
  state: LocalState,
  options: { port: number; vars?: Record<string, string>; entry?: string },
): Promise<Edge> {
  await requireFreePort(options.port);
  const wrangler = join(dirname(createRequire(import.meta.url).resolve("wrangler/package.json")), "bin/wrangler.js");
  const log = state.path("logs/edge.log");
  state.secrets();
  const running = startProcess(
    [
      wrangler,
      "dev",
      ...(options.entry ? [options.entry] : []),
      "--config",
      join(root, "wrangler.toml"),
      "--ip",
      "127.0.0.1",
      "--port",
      String(options.port),
      "--inspector-port",
      String(await freePort()),
      "--persist-to",
      state.path("edge"),
      "--env-file",
      state.path("secrets.env"),
      "--show-interactive-dev-session=false",
      "--log-level",
      "info",
      ...Object.entries(options.vars ?? {}).flatMap(([name, value]) => ["--var", `${name}:${value}`]),
    ],
    {
      log,
      cwd: root,
      env: { WRANGLER_SEND_METRICS: "false", CLOUDFLARE_CF_FETCH_ENABLED: "false", WRANGLER_LOG_PATH: state.path("logs"), NO_COLOR: "1" },
    },
  );
  state.remember(running.pid);
  const url = `http://127.0.0.1:${options.port}`;
  await untilReady("The edge", running, log, 60_000, async () => (await fetch(`${url}/healthz`)).ok).catch(async error => {
    await running.stop();
    throw error;
  });
  return { ...running, url };
}
