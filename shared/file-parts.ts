import { z } from "zod";

/** Large files go to the edge in parts: Workers take bodies of 100 MB, R2 files of 5 GB in one piece. */

/** Bytes of each part but the last one; a file with no more than that goes in one piece. */
export const PART_BYTES = 64 * 1024 * 1024;
/** Most bytes of a file that a runner sends: R2 takes more, no runner's disk should. */
export const MAX_RUNNER_FILE_BYTES = 1024 * PART_BYTES;

/** Answer to the beginning of an upload in parts. */
export const begunUploadSchema = z.strictObject({ upload_id: z.string().min(1).max(2048) });

/** Answer to a part. */
export const takenPartSchema = z.strictObject({ part: z.int().min(1).max(10_000), etag: z.string().min(1).max(200) });
export type TakenPart = z.infer<typeof takenPartSchema>;

/** The end of an upload in parts: all of them in their order. */
export const allPartsSchema = z.strictObject({
  bytes: z.int().positive().max(MAX_RUNNER_FILE_BYTES),
  parts: z.array(takenPartSchema).min(1).max(1024),
});
