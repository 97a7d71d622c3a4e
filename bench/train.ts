import { fileURLToPath } from "node:url";
import { z } from "zod";
import type { Benchmark, Row } from "./benchmark.ts";
import { startChild } from "./child.ts";
import type { Options } from "./options.ts";
import { writeUnet } from "./random-model.ts";
import { withScratchFolder } from "./scratch.ts";
import { median } from "./statistics.ts";
import { tunedMalloc } from "./unet.ts";

const path = (name: string): string => fileURLToPath(new URL(name, import.meta.url));
const peer: string = path("peers/train_torch.py");
const ours = "Atelier";
const recomputed = "Atelier, recomputed";

interface Contender {
  script: string;
  more: readonly string[];
  env: Record<string, string>;
  /** Which of ours does as it does: keeps activations, or computes them again. */
  besides: string;
}

/** Each runs alone: two of them would not fit into the memory of a small machine, and the peak of a size needs a process of its own. */
const contenders: Readonly<Record<string, Contender>> = {
  [ours]: { script: path("children/train.ts"), more: [], env: {}, besides: ours },
  PyTorch: { script: peer, more: [], env: tunedMalloc, besides: ours },
  [recomputed]: { script: path("children/train.ts"), more: ["recomputed"], env: {}, besides: recomputed },
  "PyTorch, checkpointed": { script: peer, more: ["checkpointed"], env: tunedMalloc, besides: recomputed },
};

/** Steps at a size that are not counted: the first ones lay out buffers. */
const WARM_UPS = 2;

const answerSchema = z.object({ seconds: z.number(), load_seconds: z.number(), peak_bytes: z.number(), loss: z.number() });
type Answer = z.infer<typeof answerSchema>;

export const train: Benchmark = {
  about:
    "LoRA of rank 8 on every attention projection, fp32, batch 1, AdamW included; one after the other, each size in a process of its own",
  run: (options, say) =>
    withScratchFolder(async folder => {
      const files = writeUnet(folder, options, say);
      const rows: Row[] = [];
      for (const pixels of options.sizes) rows.push(...(await compare([...files, folder, String(options.threads)], pixels, options, say)));
      return rows;
    }),
};

async function compare(args: readonly string[], pixels: number, options: Options, say: (line: string) => void): Promise<Row[]> {
  const measured = new Map<string, Answer[]>();
  for (const [name, { script, more, env }] of Object.entries(contenders)) {
    const command = script === peer ? options.python : process.execPath;
    if (command) measured.set(name, await steps(command, [script, ...args, ...more], env, pixels, options.rounds ?? 5));
    say(command ? `${name}: ${pixels} px done` : `${name} is left out: name a Python with --python or ATELIER_PYTHON`);
  }
  return [...measured].map(([name, answers]) => {
    const own = measured.get(contenders[name]!.besides)!;
    requireSameLoss(name, answers[0]!.loss, own[0]!.loss);
    const peakOf = (all: readonly Answer[]): number => all.at(-1)!.peak_bytes / 1e6;
    const secondsOf = (all: readonly Answer[]): number[] => all.map(({ seconds }) => seconds);
    return {
      px: pixels,
      what: name,
      "median s": median(secondsOf(answers)),
      "min s": Math.min(...secondsOf(answers)),
      "ours / it": median(secondsOf(own)) / median(secondsOf(answers)),
      "peak MB": peakOf(answers),
      "our peak / its": peakOf(own) / peakOf(answers),
      "load s": answers[0]!.load_seconds,
    };
  });
}

/** Steps of one contender at one size. */
async function steps(
  command: string,
  args: readonly string[],
  env: Record<string, string>,
  pixels: number,
  rounds: number,
): Promise<Answer[]> {
  const child = startChild(command, args, env);
  try {
    const answers: Answer[] = [];
    for (let step = 0; step < WARM_UPS + rounds; step++) answers.push(await child.ask({ side: pixels / 8 }, answerSchema));
    return answers.slice(WARM_UPS);
  } finally {
    await child.end();
  }
}

/** A comparison of speed is worth something only where both train alike. */
function requireSameLoss(name: string, got: number, expected: number): void {
  if (!(Math.abs(got - expected) <= 1e-3 * expected))
    throw new Error(`${name} trains something else: expected a loss of ${expected} after the warm-up, got ${got}.`);
}
