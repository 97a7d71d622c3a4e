import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { freePort } from "../../scripts/local/processes.ts";
import { type Product, startProduct as start, startLocalEdge } from "../../scripts/local/product.ts";
import { LocalState } from "../../scripts/local/state.ts";

/** The embedded model, as the product serves it. */
export const pocket = fileURLToPath(new URL("../../models/pocket", import.meta.url));

/** Times short enough for faults to be seen in seconds. */
export const quickTimes = {
  LEASE_MS: "2500",
  HEARTBEAT_MS: "500",
  ACK_MS: "1500",
  STALL_MS: "3000",
  SWEEP_MS: "1000",
  ATTEMPT_MS: "60000",
};

/** A state folder of its own, removed at the end. */
export function temporaryState(): { state: LocalState; remove(): void } {
  const folder = mkdtempSync(join(tmpdir(), "atelier-"));
  return { state: new LocalState(folder), remove: () => rmSync(folder, { recursive: true, force: true, maxRetries: 5 }) };
}

/** The real product in real processes, in a state folder and on ports of its own. */
export async function startProduct(
  options: { vars?: Record<string, string>; runnerEnv?: Record<string, string> } = {},
): Promise<Product & { state: LocalState }> {
  const { state, remove } = temporaryState();
  const product = await start(state, { port: await freePort(), models: [pocket], ...options });
  const stop = async () => {
    await product.stop();
    remove();
  };
  return { ...product, state, stop };
}

/** The edge without any runner. */
export async function startEdgeOnly(options: { vars?: Record<string, string>; state?: LocalState; port?: number } = {}) {
  const temporary = options.state ? undefined : temporaryState();
  const state = options.state ?? temporary?.state ?? new LocalState();
  const started = await startLocalEdge(state, {
    port: options.port ?? (await freePort()),
    models: [pocket],
    ...(options.vars && { vars: options.vars }),
  });
  const stop = async () => {
    await started.edge.stop();
    temporary?.remove();
  };
  return { ...started, url: started.edge.url, state, stop };
}
