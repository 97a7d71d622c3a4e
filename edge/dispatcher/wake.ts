import type { Env } from "../env.ts";
import { errorFields, log } from "../log.ts";
import { sweepOrphans } from "../orphans.ts";

/** Pools of the models that are served, and of what lives although its model is not served any more. */
const pools = `
  SELECT pool FROM models
  UNION SELECT pool FROM jobs WHERE status = 'active'
  UNION SELECT pool FROM executions WHERE state IN ('active', 'abandoned')`;

/** Wakes the dispatcher of every pool: each sweeps and re-arms its alarm. Files without a row are looked for as well. */
export async function wakeDispatchers(_controller: unknown, env: Env): Promise<void> {
  const { results } = await env.DB.prepare(pools).all<{ pool: string }>();
  const wake = async (pool: string) => {
    try {
      await env.DISPATCHER.getByName(pool).sweep({ v: 1 });
    } catch (error) {
      log("error", "a dispatcher could not be woken; the next trigger tries again", { pool, ...errorFields(error) });
    }
  };
  await Promise.all([...results.map(({ pool }) => wake(pool)), sweepOrphans(env, Date.now())]);
}
