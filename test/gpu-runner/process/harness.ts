/** A runner in this process with the scripted model thread, connected to a test's edge. */
import { tmpdir } from "node:os";
import { readConfig } from "../../../gpu-runner/config.ts";
import { createLogger } from "../../../gpu-runner/log.ts";
import { createMetrics } from "../../../gpu-runner/metrics.ts";
import { Runner } from "../../../gpu-runner/runner.ts";
import { type EdgePeer, TOKEN } from "./edge-peer.ts";

export const scriptedWorker = new URL("./scripted-worker.ts", import.meta.url);
export const silent = createLogger("fatal", { write: () => {} });

export function runnerFor(peer: EdgePeer, environment: Record<string, string> = {}, workerScript = scriptedWorker) {
  const lines: string[] = [];
  const config = readConfig({
    ATELIER_EDGE_URL: peer.url.href,
    ATELIER_RUNNER_TOKEN: TOKEN,
    ATELIER_GRANT_KEYS: peer.jwks,
    ATELIER_MODELS: "/models/scripted",
    ATELIER_CACHE_DIR: tmpdir(),
    ...environment,
  });
  const metrics = createMetrics();
  let stuck = 0;
  const runner = new Runner({
    config,
    log: createLogger("trace", { write: line => lines.push(line) }),
    metrics,
    workerScript,
    onStuck: () => stuck++,
  });
  return { runner, metrics, lines, stuck: () => stuck };
}
