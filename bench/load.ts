import { existsSync, mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { z } from "zod";
import type { Benchmark, Row } from "./benchmark.ts";
import { type Child, startChild } from "./child.ts";
import { writeStableDiffusion15 } from "./random-model.ts";
import { withScratchFolder } from "./scratch.ts";
import { median } from "./statistics.ts";

const answerSchema = z.object({ loaded: z.number(), stepped: z.number(), step: z.number(), bytes: z.number(), peak_bytes: z.number() });

/** Graphs of the model that are large enough to be prepared: the UNet and the text encoder. */
const PREPARED = 2;
const PREPARATION_S = 300;

export const load: Benchmark = {
  about:
    "seconds from the process's start to a model's first step, Stable Diffusion 1.5 geometry, all parts, bf16 on disk; first: nothing in the cache, next: widened weights there, prepared: optimised graphs there too",
  run: ({ threads, sizes, rounds = 3 }, say) =>
    withScratchFolder(async folder => {
      const model = join(folder, "model");
      const cache = join(folder, "cache");
      mkdirSync(cache);
      say(`${(writeStableDiffusion15(model) / 1e6).toFixed(0)} M parameters written`);
      const side = sizes[0]! / 8;
      const start = (): Child => {
        const script = fileURLToPath(new URL("children/load.ts", import.meta.url));
        return startChild(process.execPath, [script, model, cache, String(threads), String(side)]);
      };
      const rows = [await measure("first", start, rounds), await measure("next", start, rounds)];
      await prepared(start, cache, say);
      return [...rows, await measure("prepared", start, rounds)];
    }),
};

async function measure(state: string, start: () => Child, rounds: number): Promise<Row> {
  const child = start();
  try {
    const first = await child.ask({}, answerSchema);
    const steps: number[] = [];
    let last = first;
    for (let round = 0; round < rounds; round++) {
      last = await child.ask({}, answerSchema);
      steps.push(last.step);
    }
    return {
      state,
      "loaded s": first.loaded,
      "first step s": first.stepped,
      "step s": median(steps),
      "RSS MB": last.bytes / 1e6,
      "peak MB": last.peak_bytes / 1e6,
    };
  } finally {
    await child.end();
  }
}

/** Keeps a process open until it has prepared its graphs. @throws an Error where that takes too long */
async function prepared(start: () => Child, cache: string, say: (line: string) => void): Promise<void> {
  const child = start();
  const began = performance.now();
  const count = (): number => {
    const folder = join(cache, "prepared");
    return existsSync(folder) ? readdirSync(folder).filter(name => !name.endsWith(".tmp")).length : 0;
  };
  try {
    await child.ask({}, answerSchema);
    while (count() < PREPARED) {
      if (performance.now() - began > PREPARATION_S * 1000) throw new Error(`expected ${PREPARED} prepared graphs, got ${count()}`);
      await delay(200);
    }
    say(`prepared in ${((performance.now() - began) / 1000).toFixed(0)} s, in the background`);
  } finally {
    await child.end();
  }
}
