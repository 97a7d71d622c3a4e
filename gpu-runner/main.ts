/** The GPU runner's entry: `npm run runner`. Settings come from the environment (config.ts). */

import { ModelLoadFailed } from "./compute-errors.ts";
import { ConfigError, readConfig } from "./config.ts";
import { serveHealth } from "./health.ts";
import { createLogger } from "./log.ts";
import { createMetrics } from "./metrics.ts";
import { Runner } from "./runner.ts";

const workerScript = new URL("./model-worker.ts", import.meta.url);

async function main(): Promise<void> {
  const config = readConfig(process.env);
  const log = createLogger(config.logLevel);
  const metrics = createMetrics();
  const runner = new Runner({ config, log, metrics, workerScript, onStuck: () => dieNow("the model thread is stuck in native code") });

  /** A thread inside native code can't be ended, and `process.exit` would wait for it: only a kill frees the machine. */
  function dieNow(reason: string): void {
    log.fatal({ reason }, "the process ends at once");
    process.kill(process.pid, "SIGKILL");
    // Only the first process of a container comes here: the kernel spares it from its own signals.
    process.abort();
  }

  // Also what a rejected promise nobody waits for ends in. The supervisor starts anew; the dispatcher sees leases that no heartbeat names.
  process.on("uncaughtException", error => dieNow(`unexpected: ${error.stack ?? error.message}`));

  const health = await serveHealth(config.http.host, config.http.port, {
    problems: () => runner.problems(),
    metrics: () => {
      runner.observe();
      return metrics.registry.metrics();
    },
  });
  let stopping = false;
  const stop = async (signal: NodeJS.Signals) => {
    if (stopping) return dieNow(`${signal} came again`);
    stopping = true;
    log.info({ signal, grace_ms: config.drainMs }, "draining");
    if (!(await runner.drain(config.drainMs))) return dieNow("the model thread did not end");
    await health.close();
    log.info("stopped");
    process.exit(0);
  };
  process.on("SIGTERM", signal => void stop(signal));
  process.on("SIGINT", signal => void stop(signal));

  log.info({ instance: runner.instance, health_port: health.port, provider: config.provider, models: config.models }, "loading the models");
  await runner.start();
  log.info({ models: runner.thread.models }, "the models are loaded");
}

main().catch((error: unknown) => {
  const expected = error instanceof ConfigError || error instanceof ModelLoadFailed || !(error instanceof Error);
  process.stderr.write(
    `atelier runner: ${error instanceof Error ? (expected ? error.message : (error.stack ?? error.message)) : "failed"}\n`,
  );
  process.exit(1);
});
