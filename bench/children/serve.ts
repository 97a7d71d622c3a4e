import { createInterface } from "node:readline";
import type { z } from "zod";

/** The child's side of `../child.ts`: answers every line on stdin until it ends. */
export async function serve<T>(request: z.ZodType<T>, answer: (request: T) => Promise<object>): Promise<void> {
  for await (const line of createInterface({ input: process.stdin }))
    console.log(JSON.stringify(await answer(request.parse(JSON.parse(line)))));
}

/** Most main memory that this process has held at once, in bytes. */
export function peakBytes(): number {
  return process.resourceUsage().maxRSS * 1024;
}
