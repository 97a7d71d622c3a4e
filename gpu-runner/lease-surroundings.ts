import { ComputeFailed } from "./compute-errors.ts";
import type { RunnerConfig } from "./config.ts";
import type { Logger } from "./log.ts";
import type { Metrics } from "./metrics.ts";
import { UploadRefused, uploadDefaults } from "./uploads.ts";

/** What the work under a lease has of the runner; the log names the lease. */
export interface LeaseSurroundings {
  config: RunnerConfig;
  metrics: Metrics;
  log: Logger;
}

/** How results are uploaded, each further try counted and logged. */
export function uploadOptions({ config, metrics, log }: LeaseSurroundings) {
  const onRetry = (problem: string) => {
    metrics.uploadRetries.inc();
    log.warn({ problem }, "the upload is tried again");
  };
  return { edgeUrl: config.edgeUrl, ...uploadDefaults, onRetry };
}

/** What a log says of an error; nothing of it leaves the runner. */
export function failureDetail(error: unknown): string {
  if (error instanceof ComputeFailed) return error.detail;
  if (error instanceof UploadRefused) return `${error.message} (status ${error.status})`;
  return error instanceof Error ? error.message : "unknown error";
}

/** What the dispatcher is told of an error. */
export function failureOf(error: unknown): ComputeFailed {
  return error instanceof ComputeFailed ? error : new ComputeFailed("runner_failed", "The runner could not compute this.", true);
}
