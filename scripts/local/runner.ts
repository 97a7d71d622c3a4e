import { fileURLToPath } from "node:url";
import { privateJwkSchema, publicJwk } from "../../shared/signing.ts";
import { freePort, type Running, startProcess, untilReady } from "./processes.ts";
import { type LocalState, StartError } from "./state.ts";

export interface Runner extends Running {
  /** Local address of health and metrics. */
  readonly url: string;
}

/** Starts a runner against the edge and waits until it is connected and its model thread is up. */
export async function startRunner(
  state: LocalState,
  options: { edgeUrl: string; token: string; models: readonly string[]; name?: string; env?: Record<string, string>; wait?: boolean },
): Promise<Runner> {
  const port = await freePort();
  const name = options.name ?? "runner";
  const log = state.path(`logs/${name}.log`);
  const grantKey = state.secrets().GRANT_KEY;
  if (!grantKey) throw new StartError(`${state.path("secrets.env")} has no GRANT_KEY.`);
  const running = startProcess([fileURLToPath(new URL("../../gpu-runner/main.ts", import.meta.url))], {
    log,
    env: {
      ATELIER_EDGE_URL: options.edgeUrl,
      ATELIER_RUNNER_TOKEN: options.token,
      ATELIER_GRANT_KEYS: JSON.stringify({ keys: [publicJwk(privateJwkSchema.parse(JSON.parse(grantKey)))] }),
      ATELIER_MODELS: options.models.join(","),
      ATELIER_CACHE_DIR: state.path("runner"),
      ATELIER_HTTP_PORT: String(port),
      ...options.env,
    },
  });
  state.remember(running.pid);
  const url = `http://127.0.0.1:${port}`;
  if (options.wait ?? true) {
    await untilReady("The runner", running, log, 60_000, async () => (await fetch(`${url}/readyz`)).ok).catch(async error => {
      await running.stop();
      throw error;
    });
  }
  return { ...running, url };
}
