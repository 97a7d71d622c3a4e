import { runnerPaths, type TrainingProgress } from "../shared/protocol.ts";
import { type TrainingEvent, trainingEventSchema } from "../shared/training.ts";
import type { HeldLease } from "./leases.ts";
import { networkProblem } from "./uploads.ts";

/** Least time between two posts, in milliseconds. */
const BATCH_MS = 500;
const TIMEOUT_MS = 10_000;
/** Events of one post: the protocol's bound is 32, and previews are up to 64 KiB each in a body of 1 MiB. */
const MOST_EVENTS = 15;

/**
 * Sends a training's events, at most two posts a second. Of steps that come meanwhile only the newest goes; the rest goes in its order. As
 * with pictures no failure here touches the execution.
 */
export class TrainingReporter {
  readonly #lease: HeldLease;
  readonly #url: URL;
  readonly #onFailure: (problem: string) => void;
  #waiting: TrainingEvent[] = [];
  #sending: Promise<void> | undefined;

  constructor(lease: HeldLease, edgeUrl: URL, onFailure: (problem: string) => void) {
    this.#lease = lease;
    this.#url = new URL(runnerPaths.progress(lease.execution), edgeUrl);
    this.#onFailure = onFailure;
  }

  report(event: TrainingEvent): void {
    // A preview past the schema's bound is left out rather than refused with its post.
    if (!trainingEventSchema.safeParse(event).success) return;
    if (event.type === "step") this.#waiting = this.#waiting.filter(({ type }) => type !== "step");
    this.#waiting.push(event);
    this.#sending ??= this.#drain().finally(() => {
      this.#sending = undefined;
    });
  }

  /** Resolves when everything was sent, or given up. */
  async flushed(): Promise<void> {
    await this.#sending;
  }

  async #drain(): Promise<void> {
    while (this.#waiting.length > 0 && !this.#lease.ended.aborted) {
      await new Promise(resolve => setTimeout(resolve, BATCH_MS));
      await this.#post({ events: this.#waiting.splice(0, MOST_EVENTS) });
    }
  }

  async #post(body: TrainingProgress): Promise<void> {
    try {
      const response = await fetch(this.#url, {
        method: "POST",
        headers: {
          authorization: `Bearer ${this.#lease.capabilities.progress}`,
          "content-type": "application/json",
          "x-request-id": this.#lease.requestId,
        },
        body: JSON.stringify(body),
        redirect: "manual",
        signal: AbortSignal.any([this.#lease.ended, AbortSignal.timeout(TIMEOUT_MS)]),
      });
      await response.body?.cancel();
      if (!response.ok) this.#onFailure(`HTTP ${response.status}`);
    } catch (error) {
      if (!this.#lease.ended.aborted) this.#onFailure(networkProblem(error));
    }
  }
}
