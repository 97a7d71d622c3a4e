import type { Env } from "../env.ts";

/** The queue's push consumer. */
export async function consumeQueue(batch: MessageBatch<unknown>, _env: Env): Promise<void> {
  batch.ackAll();
}
