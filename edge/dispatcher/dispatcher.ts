import { DurableObject } from "cloudflare:workers";
import type { Env } from "../env.ts";
import type { DispatcherRpc, PoolStatus, PoolView } from "./rpc.ts";

/** The only authority on a pool's executions until they are terminal: one object per pool, named after it. */
export class Dispatcher extends DurableObject<Env> implements DispatcherRpc {
  async offer(_message: Parameters<DispatcherRpc["offer"]>[0]): ReturnType<DispatcherRpc["offer"]> {
    return "queued";
  }
  async abandon(_message: Parameters<DispatcherRpc["abandon"]>[0]): Promise<void> {}
  async describe({ executions }: Parameters<DispatcherRpc["describe"]>[0]): Promise<PoolView> {
    return { executions: executions.map(execution => ({ execution, state: "unknown", position: null, epoch: 0 })), runners: 0 };
  }
  async holds(_message: Parameters<DispatcherRpc["holds"]>[0]): Promise<boolean> {
    return false;
  }
  async watch(_message: Parameters<DispatcherRpc["watch"]>[0]): Promise<void> {}
  async revoke(_message: Parameters<DispatcherRpc["revoke"]>[0]): Promise<void> {}
  async sweep(_message: Parameters<DispatcherRpc["sweep"]>[0]): Promise<PoolStatus> {
    return { pool: this.ctx.id.name ?? "", runners: [], queued: 0, leased: 0, committing: 0 };
  }
}
