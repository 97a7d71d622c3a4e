import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import type { TrainingResult } from "../shared/training.ts";
import { ComputeCanceled } from "./compute-errors.ts";
import { failureDetail, type LeaseSurroundings, uploadOptions } from "./lease-surroundings.ts";
import type { HeldLease } from "./leases.ts";
import type { ModelThread } from "./model-thread.ts";
import { TrainingReporter } from "./training-events.ts";
import { CheckpointUploads, fetchCheckpoint, uploadFiles } from "./training-files.ts";

export type TrainingLease = HeldLease & { kind: "training" };

export interface TrainingSurroundings extends LeaseSurroundings {
  thread: ModelThread;
  isDraining(): boolean;
  /** Its files are about to be uploaded; false where the lease is over. */
  onComputed(): boolean;
}

/** Most time before an attempt's deadline at which a training ends in good order, so that its files are written and uploaded, in milliseconds. */
const MOST_MARGIN_MS = 120_000;

/**
 * A training under a lease, from the checkpoint that may be there to the upload of what it makes. `stale` where the edge says that the lease is
 * over, undefined where it ended meanwhile. What it came to before an error is uploaded: the next attempt goes on from there.
 * @throws ComputeFailed; ComputeCanceled; UploadRefused
 */
export async function runTraining(lease: TrainingLease, around: TrainingSurroundings): Promise<TrainingResult | "stale" | undefined> {
  const { config, metrics, log, thread } = around;
  const upload = uploadOptions(around);
  const onFailure = (error: unknown) => log.warn({ error: failureDetail(error) }, "a checkpoint could not be uploaded");
  const checkpoints = new CheckpointUploads(lease, { ...upload, everyMs: config.checkpointMs, onFailure });
  const events = new TrainingReporter(lease, config.edgeUrl, problem => {
    metrics.progressFailures.inc();
    log.debug({ problem }, "events did not arrive");
  });
  const folder = join(config.cacheDir, "trainings", `${lease.execution}-${lease.epoch}`);
  const stop = () => thread.cancelTraining();
  try {
    await mkdir(folder, { recursive: true });
    const resumeFrom = await fetchCheckpoint(lease, config.edgeUrl, folder);
    lease.ended.throwIfAborted();
    if (around.isDraining()) throw new ComputeCanceled("the runner drains");
    if (resumeFrom !== null) log.info("the training goes on from a checkpoint");
    lease.ended.addEventListener("abort", stop, { once: true });
    const run = { onEvent: events.report.bind(events), onCheckpoint: checkpoints.offer.bind(checkpoints) };
    const result = await thread.train({ ...taskOf(lease), folder, resumeFrom }, run, lease.attemptDeadline);
    if (!around.onComputed()) return undefined;
    await events.flushed();
    return (await uploadFiles(lease, join(folder, "result"), result.files, upload)) === "stale" ? "stale" : result;
  } catch (error) {
    await checkpoints.flush();
    throw error;
  } finally {
    lease.ended.removeEventListener("abort", stop);
    await rm(folder, { recursive: true, force: true });
  }
}

function taskOf({ request, fetched: inputs = { files: {}, adapters: {} }, attemptDeadline }: TrainingLease) {
  const margin = Math.min(MOST_MARGIN_MS, (attemptDeadline - Date.now()) / 5);
  return { request, inputs, deadline: Math.floor(attemptDeadline - margin) };
}
