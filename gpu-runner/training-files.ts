/** A training's files between this machine and the edge: its checkpoint in both directions, and what it made. */
import { createWriteStream, linkSync, openAsBlob, rmSync } from "node:fs";
import { rename } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { checkpointKey, runnerPaths, trainingStagingKey } from "../shared/protocol.ts";
import type { TrainingFile } from "../shared/training.ts";
import type { HeldLease } from "./leases.ts";
import { type UploadOptions, upload } from "./uploads.ts";
import { sha256OfFile } from "./weights/file-hash.ts";

/**
 * The last checkpoint of any attempt, into a file of the folder: its path, or null where there is none.
 * @throws Error where the edge or the network fails
 */
export async function fetchCheckpoint(lease: HeldLease, edgeUrl: URL, folder: string): Promise<string | null> {
  const { checkpoint } = lease.capabilities;
  if (!checkpoint) return null;
  const response = await fetch(new URL(runnerPaths.object(checkpointKey(lease.execution)), edgeUrl), {
    headers: { authorization: `Bearer ${checkpoint.get}`, "x-request-id": lease.requestId },
    redirect: "manual",
    signal: lease.ended,
  });
  if (response.status !== 200 || !response.body) {
    await response.body?.cancel();
    if (response.status === 404) return null;
    throw new Error(`the checkpoint could not be fetched: HTTP ${response.status}`);
  }
  const path = join(folder, "resume.safetensors");
  const received = Readable.fromWeb(response.body).on("data", () => lease.activity++);
  await pipeline(received, createWriteStream(`${path}.part`), { signal: lease.ended });
  await rename(`${path}.part`, path);
  return path;
}

/** Uploads every file of a result below its lease's staging key. */
export async function uploadFiles(
  lease: HeldLease,
  folder: string,
  files: readonly TrainingFile[],
  options: UploadOptions,
): Promise<"uploaded" | "stale"> {
  for (const { path, sha256, media_type } of files) {
    const key = trainingStagingKey(lease.execution, lease.epoch, path);
    const body = await openAsBlob(join(folder, path));
    const file = { key, capability: lease.capabilities.result, mediaType: media_type, sha256, body };
    if ((await upload(lease, file, options)) === "stale") return "stale";
  }
  return "uploaded";
}

export interface CheckpointUploadOptions extends UploadOptions {
  /** Least time between two uploads, in milliseconds. */
  everyMs: number;
  onFailure(error: unknown): void;
}

/** Sends checkpoints as they come, at most one in `everyMs`; no failure here touches the training. */
export class CheckpointUploads {
  readonly #lease: HeldLease;
  readonly #options: CheckpointUploadOptions;
  #lastAt = Number.NEGATIVE_INFINITY;
  #sending: Promise<void> = Promise.resolve();
  #isSending = false;
  /** Path of the newest checkpoint that was not sent. */
  #unsent: string | undefined;

  constructor(lease: HeldLease, options: CheckpointUploadOptions) {
    this.#lease = lease;
    this.#options = options;
  }

  offer(path: string): void {
    this.#unsent = path;
    if (this.#isSending || performance.now() - this.#lastAt < this.#options.everyMs) return;
    this.#send();
  }

  /** Sends the newest one, whatever the time. */
  async flush(): Promise<void> {
    await this.#sending;
    this.#send();
    await this.#sending;
  }

  #send(): void {
    const path = this.#unsent;
    const capability = this.#lease.capabilities.checkpoint?.put;
    if (path === undefined || capability === undefined) return;
    this.#unsent = undefined;
    this.#lastAt = performance.now();
    this.#isSending = true;
    this.#sending = this.#put(path, capability).finally(() => {
      this.#isSending = false;
    });
  }

  async #put(path: string, capability: string): Promise<void> {
    const { execution, epoch } = this.#lease;
    // The next checkpoint takes the path by renaming: a link keeps this one's content.
    const held = `${path}.${crypto.randomUUID()}.upload`;
    try {
      linkSync(path, held);
      const [sha256, body] = [await sha256OfFile(held), await openAsBlob(held)];
      const mediaType = "application/octet-stream";
      await upload(this.#lease, { key: checkpointKey(execution, epoch), capability, mediaType, sha256, body }, this.#options);
    } catch (error) {
      this.#options.onFailure(error);
    } finally {
      rmSync(held, { force: true });
    }
  }
}
