import type { ExecutionView } from "./dispatcher/rpc.ts";
import type { Env } from "./env.ts";
import type { StoredJob } from "./jobs.ts";
import { errorFields, log } from "./log.ts";

/** What only the dispatcher and the job's events know of a live job. */
export interface LiveState {
  readonly executions: ReadonlyMap<string, ExecutionView>;
  /** Models of these jobs that a connected runner can take; undefined where the dispatcher could not be asked. */
  readonly served: readonly string[] | undefined;
  readonly progress: readonly { readonly index: number; readonly step: number; readonly steps: number }[];
}

/** What is known of a job that isn't live, or whose dispatcher doesn't answer. */
export const nothingLive: LiveState = { executions: new Map(), served: undefined, progress: [] };

/** Asks for the live state of jobs: one call a pool, and one for each live job's progress. Terminal jobs cost nothing. */
export async function liveStates(env: Env, stored: readonly StoredJob[]): Promise<Map<string, LiveState>> {
  const live = stored.filter(({ job }) => job.status === "active");
  const byPool = Map.groupBy(live, ({ job }) => job.pool);
  const states = new Map<string, LiveState>();
  await Promise.all(
    Array.from(byPool, async ([pool, members]) => {
      const [view, progress] = await Promise.all([
        describePool(env, pool, members),
        Promise.all(members.map(({ job }) => progressOf(env, job.id))),
      ]);
      for (const [i, { job }] of members.entries()) states.set(job.id, { ...view, progress: progress[i]! });
    }),
  );
  return states;
}

async function describePool(env: Env, pool: string, members: readonly StoredJob[]): Promise<Omit<LiveState, "progress">> {
  const waiting = members.flatMap(({ pictures }) =>
    pictures.flatMap(picture => (picture.state === "pending" && picture.execution_id !== null ? [picture.execution_id] : [])),
  );
  try {
    const models = [...new Set(members.map(({ job }) => job.model_hash))];
    const view = await env.DISPATCHER.getByName(pool).describe({ v: 1, executions: [...new Set(waiting)], models });
    return { executions: new Map(view.executions.map(execution => [execution.execution, execution])), served: view.served };
  } catch (error) {
    log("warn", "the dispatcher does not describe its executions", { pool, ...errorFields(error) });
    return nothingLive;
  }
}

async function progressOf(env: Env, job: string): Promise<LiveState["progress"]> {
  try {
    return await env.JOB_EVENTS.getByName(job).progress({ v: 1, job });
  } catch (error) {
    log("warn", "the events object does not tell its progress", { job, ...errorFields(error) });
    return [];
  }
}
