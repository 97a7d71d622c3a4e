import { fileURLToPath } from "node:url";
import { z } from "zod";
import type { Benchmark, Row } from "./benchmark.ts";
import { type Child, startChild } from "./child.ts";
import { withScratchFolder } from "./scratch.ts";
import { median } from "./statistics.ts";

const STEPS = 20;

const answerSchema = z.object({
  seconds: z.number(),
  width: z.int(),
  height: z.int(),
  load_seconds: z.number(),
  bytes: z.number(),
  peak_bytes: z.number(),
});

export const pocket: Benchmark = {
  about: `pictures of the embedded model in one process, from prompt to PNG: ${STEPS} steps of DDIM with guidance, one picture at a time`,
  run: ({ model, threads, rounds = 10 }) =>
    withScratchFolder(async scratch => {
      const script = fileURLToPath(new URL("children/pocket.ts", import.meta.url));
      const child = startChild(process.execPath, [script, model, scratch, String(threads)]);
      try {
        return [await draw(child, rounds)];
      } finally {
        await child.end();
      }
    }),
};

async function draw(child: Child, rounds: number): Promise<Row> {
  const first = await child.ask({ seed: 0, steps: STEPS }, answerSchema);
  const seconds: number[] = [];
  let last = first;
  for (let seed = 1; seed <= rounds; seed++) {
    last = await child.ask({ seed, steps: STEPS }, answerSchema);
    seconds.push(last.seconds);
  }
  return {
    size: `${last.width}x${last.height}`,
    "pictures/min": 60 / median(seconds),
    "median s": median(seconds),
    "min s": Math.min(...seconds),
    "load s": first.load_seconds,
    "first picture s": first.seconds,
    "RSS MB": last.bytes / 1e6,
    "peak MB": last.peak_bytes / 1e6,
  };
}
