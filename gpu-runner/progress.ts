import { type ProgressReport, runnerPaths } from "../shared/protocol.ts";
import type { HeldLease } from "./leases.ts";
import { networkProblem } from "./uploads.ts";

const TIMEOUT_MS = 10_000;
/** The schema's bound on a preview; a longer one is left out rather than refused with its report. */
const MAX_PREVIEW_CHARACTERS = 65_536;

/**
 * Sends an execution's progress: at most one report is under way, and of those that come meanwhile only the latest goes next (with the
 * latest preview). Progress is a courtesy: no failure here touches the execution.
 */
export class ProgressReporter {
  readonly #lease: HeldLease;
  readonly #url: URL;
  readonly #onFailure: (problem: string) => void;
  #waiting: ProgressReport | undefined;
  #sending = false;

  constructor(lease: HeldLease, edgeUrl: URL, onFailure: (problem: string) => void) {
    this.#lease = lease;
    this.#url = new URL(runnerPaths.progress(lease.execution), edgeUrl);
    this.#onFailure = onFailure;
  }

  report({ step, steps, preview }: ProgressReport): void {
    const latest = preview !== undefined && preview.length <= MAX_PREVIEW_CHARACTERS ? preview : this.#waiting?.preview;
    this.#waiting = { step, steps, ...(latest !== undefined && { preview: latest }) };
    if (!this.#sending) void this.#drain();
  }

  async #drain(): Promise<void> {
    this.#sending = true;
    while (this.#waiting && !this.#lease.ended.aborted) {
      const report = this.#waiting;
      this.#waiting = undefined;
      await this.#post(report);
    }
    this.#sending = false;
  }

  async #post(report: ProgressReport): Promise<void> {
    try {
      const response = await fetch(this.#url, {
        method: "POST",
        headers: {
          authorization: `Bearer ${this.#lease.capabilities.progress}`,
          "content-type": "application/json",
          "x-request-id": this.#lease.requestId,
        },
        body: JSON.stringify(report),
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
