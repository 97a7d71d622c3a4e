import { ComputeCanceled, ComputeFailed } from "./compute-errors.ts";
import type { FromWorker } from "./model-messages.ts";

/** Why a computation was lost. */
export type LossReason = "crashed" | "hung" | "overran";

/** What the thread says of an item. */
export type ItemMessage = Exclude<Extract<FromWorker, { item: number }>, { type: "failed" | "canceled" }>;
type ItemEnd = Extract<FromWorker, { item: number; type: "failed" | "canceled" }>;

export interface Pending {
  /** True for the item's last message. */
  receive(message: ItemMessage): boolean;
  reject(error: Error): void;
}

/** A batch of pictures or a training that the thread was given. */
export interface ThreadTask {
  readonly kind: "pictures" | "training";
  /** What has no answer yet, by index in the batch. */
  readonly pending: Map<number, Pending>;
  /** Milliseconds since 1970: past it the computation is given up. */
  readonly deadline: number;
  /** Of a training: whether its sessions are being opened, so that its next step may be far away. */
  isOpening: boolean;
}

/** Hands a message to the item that it is about; one that has its answer hears no more. */
export function receive({ pending }: ThreadTask, message: ItemMessage | ItemEnd): void {
  const item = pending.get(message.item);
  if (!item) return;
  if (message.type !== "failed" && message.type !== "canceled") {
    if (item.receive(message)) pending.delete(message.item);
    return;
  }
  pending.delete(message.item);
  if (message.type === "canceled") item.reject(new ComputeCanceled("canceled"));
  else item.reject(new ComputeFailed(message.code, message.message, message.retryable, message.detail));
}

/** Ends a task: what has no answer gets this error. */
export function settle({ pending }: ThreadTask, error: () => Error): void {
  const open = [...pending.values()];
  pending.clear();
  for (const { reject } of open) reject(error());
}

export function lost(reason: LossReason): ComputeFailed {
  return new ComputeFailed("runner_failed", `The computation was lost: the model thread ${reason}.`, true);
}
