import type { Env } from "../env.ts";
import { sweepOrphans } from "../orphans.ts";

/** Wakes the dispatcher of every pool that has models: each sweeps and re-arms its alarm. Files without a row are looked for as well. */
export async function wakeDispatchers(_controller: unknown, env: Env): Promise<void> {
  const { results } = await env.DB.prepare("SELECT DISTINCT pool FROM models").all<{ pool: string }>();
  await Promise.all([...results.map(({ pool }) => env.DISPATCHER.getByName(pool).sweep({ v: 1 })), sweepOrphans(env, Date.now())]);
}
