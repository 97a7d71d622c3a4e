import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Open folders and what else has to end with them; a signal must leave neither gigabytes nor processes behind. */
const cleanups = new Set<() => void>();
process.once("exit", () => {
  // The latest first: processes before the folder that they live in.
  for (const cleanup of [...cleanups].reverse()) cleanup();
});
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(signal, () => process.exit(130));

/** Calls `cleanup` should this process end before the returned function is called. */
export function atEnd(cleanup: () => void): () => void {
  cleanups.add(cleanup);
  return () => cleanups.delete(cleanup);
}

/** Lends a temporary folder, which is removed afterwards in any case. */
export async function withScratchFolder<T>(use: (folder: string) => Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), "atelier-bench-"));
  const remove = () => rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
  const done = atEnd(remove);
  try {
    return await use(folder);
  } finally {
    done();
    remove();
  }
}
