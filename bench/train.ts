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

/** Only one runs at a time: two of them would not fit into the memory of a small machine, and the peak of a size needs a process of its own. */
const contenders: Readonly<Record<string, Contender>> = {
  [ours]: { script: path("children/train.ts"), more: [], env: {}, besides: ours },
  PyTorch: { script: peer, more: [], env: tunedMalloc, besides: ours },
  [recomputed]: { script: path("children/train.ts"), more: ["recomputed"], env: {}, besides: recomputed },
  "PyTorch, checkpointed": { script: peer, more: ["checkpointed"], env: tunedMalloc, besides: recomputed },
};

/** Steps of a process that are not counted: the first ones lay out buffers, and PyTorch's allocator needs more than one. */
const WARM_UPS = 2;
/** Processes that each contender has at a size, in turn with the others', so that a machine's slow spell falls on all of them. */
const TURNS = 2;

const answerSchema = z.object({ seconds: z.number(), load_seconds: z.number(), peak_bytes: z.number(), loss: z.number() });
type Answer = z.infer<typeof answerSchema>;

export const train: Benchmark = {
  about: "LoRA of rank 8 on every attention projection, fp32, batch 1, AdamW included; in turns, each in a process of its own",
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
  const rounds = Math.ceil((options.rounds ?? 6) / TURNS);
  for (let turn = 1; turn <= TURNS; turn++)
    for (const [name, { script, more, env }] of Object.entries(contenders)) {
      const command = script === peer ? options.python : process.execPath;
      if (command) {
        const answers = await steps(command, [script, ...args, ...more], env, pixels, rounds);
        measured.set(name, [...(measured.get(name) ?? []), ...answers]);
        const seconds = answers.map(answer => answer.seconds.toFixed(2)).join(", ");
        say(`${name}: ${pixels} px, turn ${turn} of ${TURNS}: ${seconds} s, ${(answers.at(-1)!.peak_bytes / 1e9).toFixed(2)} GB`);
      } else say(`${name} is left out: name a Python with --python or ATELIER_PYTHON`);
    }
  return [...measured].map(([name, answers]) => {
    const own = measured.get(contenders[name]!.besides)!;
    requireSameLoss(name, answers[0]!.loss, own[0]!.loss);
    const peakOf = (all: readonly Answer[]): number => Math.max(...all.map(({ peak_bytes }) => peak_bytes)) / 1e6;
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
