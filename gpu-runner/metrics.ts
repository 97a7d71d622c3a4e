import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";

/** How an execution ended, seen from this runner. */
export type Outcome = "committed" | "refused" | "failed" | "canceled" | "stale" | "released";

export type Metrics = ReturnType<typeof createMetrics>;

/** The runner's Prometheus metrics beside the process's own (memory, CPU, event loop), in a registry of their own. */
export function createMetrics() {
  const registers = [new Registry()];
  const [registry] = registers as [Registry];
  collectDefaultMetrics({ register: registry });
  return {
    registry,
    executions: new Counter({ registers, name: "atelier_runner_executions_total", help: "executions by outcome", labelNames: ["outcome"] }),
    executionSeconds: new Histogram({
      registers,
      name: "atelier_runner_execution_seconds",
      help: "computing time of a picture, without its upload",
      buckets: [0.5, 1, 2, 5, 10, 20, 60, 120, 300, 900],
    }),
    stepSeconds: new Histogram({
      registers,
      name: "atelier_runner_step_seconds",
      help: "time of one sampling step",
      buckets: [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30],
    }),
    steps: new Gauge({
      registers,
      name: "atelier_runner_model_thread_counter",
      help: "steps of the model thread since the process started",
    }),
    grantsRefused: new Counter({
      registers,
      name: "atelier_runner_grants_refused_total",
      help: "grants refused before anything was computed",
      labelNames: ["reason"],
    }),
    batchSize: new Histogram({
      registers,
      name: "atelier_runner_batch_size",
      help: "executions that were computed as one batch",
      buckets: [1, 2, 4, 8, 16, 32, 64],
    }),
    inputRetries: new Counter({ registers, name: "atelier_runner_input_retries_total", help: "inputs fetched again after an error" }),
    uploadRetries: new Counter({ registers, name: "atelier_runner_upload_retries_total", help: "uploads tried again after an error" }),
    progressFailures: new Counter({
      registers,
      name: "atelier_runner_progress_failures_total",
      help: "progress reports that did not arrive",
    }),
    threadRestarts: new Counter({
      registers,
      name: "atelier_runner_model_thread_restarts_total",
      help: "model threads started anew",
      labelNames: ["reason"],
    }),
    connections: new Counter({ registers, name: "atelier_runner_connections_total", help: "sockets on which the dispatcher said welcome" }),
    connected: new Gauge({
      registers,
      name: "atelier_runner_connected",
      help: "1 while the dispatcher has said welcome on the open socket",
    }),
    badMessages: new Counter({
      registers,
      name: "atelier_runner_bad_messages_total",
      help: "messages of the dispatcher that could not be read",
    }),
    credit: new Gauge({ registers, name: "atelier_runner_credit", help: "executions that the runner last said it takes" }),
    leases: new Gauge({ registers, name: "atelier_runner_leases", help: "leases held" }),
  };
}
