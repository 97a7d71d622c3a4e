import type { ProgressReport, Result } from "../shared/protocol.ts";
import { type LeaseSurroundings, uploadOptions } from "./lease-surroundings.ts";
import type { HeldLease } from "./leases.ts";
import type { ComputeItem } from "./model-thread.ts";
import type { Picture } from "./pipeline/context.ts";
import { ProgressReporter } from "./progress.ts";
import { uploadResult } from "./uploads.ts";

/** A picture under a lease, as the model thread takes it: its steps are timed and told to the edge. */
export function pictureItem(lease: HeldLease & { kind: "picture" }, { config, metrics, log }: LeaseSurroundings): ComputeItem {
  const reporter = new ProgressReporter(lease, config.edgeUrl, problem => {
    metrics.progressFailures.inc();
    log.debug({ problem }, "progress did not arrive");
  });
  let last = performance.now();
  const onProgress = (report: ProgressReport) => {
    const now = performance.now();
    metrics.stepSeconds.observe((now - last) / 1000);
    last = now;
    reporter.report(report);
  };
  return { request: lease.request, inputs: lease.fetched ?? { files: {}, adapters: {} }, onProgress };
}

/** Uploads it and gives what the dispatcher is told; `stale` where the edge says that the lease is over. @throws UploadRefused */
export async function uploadPicture(lease: HeldLease, picture: Picture, around: LeaseSurroundings): Promise<Result | "stale"> {
  if ((await uploadResult(lease, picture, uploadOptions(around))) === "stale") return "stale";
  const { sha256, bytes, width, height } = picture;
  return { sha256, bytes: bytes.byteLength, width, height };
}
