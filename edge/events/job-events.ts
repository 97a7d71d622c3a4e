import { DurableObject } from "cloudflare:workers";
import type { JobEventsRpc } from "../dispatcher/rpc.ts";
import type { Env } from "../env.ts";

/** What a job's clients follow: progress, previews and the end. One object per job, named after it. */
export class JobEvents extends DurableObject<Env> implements JobEventsRpc {
  async append(_message: Parameters<JobEventsRpc["append"]>[0]): Promise<void> {}
  async progress(_message: Parameters<JobEventsRpc["progress"]>[0]): ReturnType<JobEventsRpc["progress"]> {
    return [];
  }
  async wait(_message: Parameters<JobEventsRpc["wait"]>[0]): Promise<void> {}
}
