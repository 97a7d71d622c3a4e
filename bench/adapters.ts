import { fileURLToPath } from "node:url";
import { z } from "zod";
import type { Benchmark, Row } from "./benchmark.ts";
import { type Child, startChild } from "./child.ts";
import type { Options } from "./options.ts";
import { writeUnet } from "./random-model.ts";
import { withScratchFolder } from "./scratch.ts";
import { median, medianRatio } from "./statistics.ts";

const RANK = 16;

/** What is compared: the LoRAs of each item of a batch by their numbers, and beside what its time is put. */
const contenders = {
  "no LoRA": { items: [[]], beside: "no LoRA" },
  "one LoRA": { items: [[0]], beside: "no LoRA" },
  "four LoRAs": { items: [[0, 1, 2, 3]], beside: "no LoRA" },
  "batch of 2, the same LoRA": { items: [[0], [0]], beside: "batch of 2, the same LoRA" },
  "batch of 2, each its own": { items: [[0], [1]], beside: "batch of 2, the same LoRA" },
} as const satisfies Record<string, { items: number[][]; beside: string }>;
type Name = keyof typeof contenders;
const names = Object.keys(contenders) as Name[];

const answerSchema = z.object({ seconds: z.number(), peak_bytes: z.number(), rms: z.number() });
type Answer = z.infer<typeof answerSchema>;

export const adapters: Benchmark = {
  about: `a step of the UNet with LoRAs of rank ${RANK} on every attention and feed-forward layer, random weights; in turns in one process, ratios are medians of the quotients round by round`,
  run: (options, say) =>
    withScratchFolder(async folder => {
      const child = startUnet(folder, options, say);
      try {
        const rows: Row[] = [];
        for (const pixels of options.sizes) rows.push(...(await compare(child, pixels, options.rounds ?? 9, say)));
        return rows;
      } finally {
        await child.end();
      }
    }),
};

function startUnet(folder: string, options: Options, say: (line: string) => void): Child {
  const [config, weights] = writeUnet(folder, options, say);
  const script = fileURLToPath(new URL("children/adapters.ts", import.meta.url));
  return startChild(process.execPath, [script, config, weights, folder, String(options.threads), String(RANK)]);
}

/** Rounds in turns, so that a change of the machine's speed meets all alike; the first makes sessions and is not counted. */
async function compare(child: Child, pixels: number, rounds: number, say: (line: string) => void): Promise<Row[]> {
  const answers = new Map<Name, Answer[]>(names.map(name => [name, []]));
  for (let round = 0; round <= rounds; round++)
    for (const name of names) {
      const answer = await child.ask({ side: pixels / 8, items: contenders[name].items }, answerSchema);
      if (round > 0) answers.get(name)!.push(answer);
    }
  say(`${pixels} px done`);
  requireWork(answers);
  const secondsOf = (name: Name): number[] => answers.get(name)!.map(({ seconds }) => seconds);
  return names.map(name => ({
    px: pixels,
    what: name,
    "median s": median(secondsOf(name)),
    "min s": Math.min(...secondsOf(name)),
    beside: contenders[name].beside,
    ratio: medianRatio(secondsOf(name), secondsOf(contenders[name].beside)),
    "peak MB": Math.max(...answers.get(name)!.map(({ peak_bytes }) => peak_bytes)) / 1e6,
  }));
}

/** A LoRA that changes nothing would cost nothing. */
function requireWork(answers: ReadonlyMap<Name, readonly Answer[]>): void {
  const rms = (name: Name): number => answers.get(name)![0]!.rms;
  for (const [name, other] of [
    ["one LoRA", "no LoRA"],
    ["four LoRAs", "one LoRA"],
    ["batch of 2, each its own", "batch of 2, the same LoRA"],
  ] as const)
    if (rms(name) === rms(other)) throw new Error(`${name} computes the same as ${other}: expected another result.`);
}
