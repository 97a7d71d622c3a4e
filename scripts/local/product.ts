import { AdminClient } from "../admin-client.ts";
import { type Edge, startEdge } from "./edge.ts";
import { migrate } from "./migrate.ts";
import { type Runner, startRunner } from "./runner.ts";
import { type LocalState, StartError } from "./state.ts";

export interface Product {
  readonly url: string;
  readonly key: string;
  readonly admin: AdminClient;
  readonly edge: Edge;
  readonly runner: Runner;
  /** Ends runner and edge, and every process that they started. */
  stop(): Promise<void>;
}

/** Edge alone, ready for requests: secrets, migrations, models registered, dispatchers awake, a key. */
export async function startLocalEdge(
  state: LocalState,
  options: { port: number; models: readonly string[]; vars?: Record<string, string>; entry?: string },
) {
  await migrate(state);
  const edge = await startEdge(state, options);
  try {
    state.announce(edge.url);
    const { ADMIN_TOKEN } = state.secrets();
    if (!ADMIN_TOKEN) throw new StartError(`${state.path("secrets.env")} has no ADMIN_TOKEN.`);
    const admin = new AdminClient(edge.url, ADMIN_TOKEN);
    const pools = new Set<string>();
    for (const folder of options.models) pools.add((await admin.addModel(folder)).pool);
    // Cron triggers don't fire by themselves in local development: this runs what they run, waking the dispatchers and sweeping orphans.
    await fetch(`${edge.url}/cdn-cgi/local/scheduled`);
    const key = await state.kept("api-key", async () => (await admin.createKey({ tenant: "local", name: "npm start" })).key);
    const token = await state.kept(
      "runner-token",
      async () => (await admin.createRunnerToken({ pool: [...pools][0] ?? "default", name: "npm start" })).token,
    );
    return { edge, admin, key, token };
  } catch (error) {
    await edge.stop();
    throw error;
  }
}

/** The whole product on this machine: edge and one runner. */
export async function startProduct(
  state: LocalState,
  options: {
    port: number;
    models: readonly string[];
    vars?: Record<string, string>;
    runnerEnv?: Record<string, string>;
    say?: (line: string) => void;
  },
): Promise<Product> {
  const say = options.say ?? (() => {});
  say("Starting the edge …");
  const { edge, admin, key, token } = await startLocalEdge(state, options);
  say("Starting the runner …");
  const runner = await startRunner(state, {
    edgeUrl: edge.url,
    token,
    models: options.models,
    // What "npm run model -- add" lists there is served without a restart.
    env: { ATELIER_MODEL_REGISTRY: state.path("models.json"), ...options.runnerEnv },
  }).catch(async error => {
    await edge.stop();
    throw error;
  });
  const stop = async () => {
    await runner.stop(10_000);
    await edge.stop();
  };
  return { url: edge.url, key, admin, edge, runner, stop };
}
