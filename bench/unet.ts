import { fileURLToPath } from "node:url";
import { z } from "zod";
import type { Benchmark, Row } from "./benchmark.ts";
import { type Child, startChild } from "./child.ts";
import type { Options } from "./options.ts";
import { writeUnet } from "./random-model.ts";
import { withScratchFolder } from "./scratch.ts";
import { median, medianRatio } from "./statistics.ts";

/** glibc gives freed memory back and faults it in again at every step unless told otherwise, which costs PyTorch a third of its speed. */
export const tunedMalloc = { MALLOC_MMAP_MAX_: "0", MALLOC_TRIM_THRESHOLD_: "100000000000", MALLOC_TOP_PAD_: "268435456" };

const peers = { PyTorch: { script: "unet_torch.py", env: tunedMalloc }, OpenVINO: { script: "unet_openvino.py", env: {} } } as const;
const ours = "Atelier";

/** Runs at a size that are not counted: the first ones lay out buffers, and PyTorch's allocator needs more than one. */
const WARM_UPS = 3;

const answerSchema = z.object({ seconds: z.number(), load_seconds: z.number(), peak_bytes: z.number(), rms: z.number() });
type Answer = z.infer<typeof answerSchema>;

/** One side of the comparison, with an answer for each round at the current size. */
interface Contender {
  readonly name: string;
  readonly child: Child;
  answers: Answer[];
}

export const unet: Benchmark = {
  about: "UNet forward, fp32, batch 1, the same random weights for all; in turns, each in a process of its own",
  run: (options, say) =>
    withScratchFolder(async folder => {
      const children: Child[] = [];
      try {
        const files = writeUnet(folder, options, say);
        const contenders = await startAll([...files, folder, String(options.threads)], children, options, say);
        const rows: Row[] = [];
        for (const pixels of options.sizes) rows.push(...(await compare(contenders, pixels, options.rounds ?? 5, say)));
        return rows;
      } finally {
        await Promise.all(children.map(child => child.end()));
      }
    }),
};

/** Starts ours and, where a Python is named, the peers, and lets each run once. A peer whose packages are missing is left out and said so. */
async function startAll(args: readonly string[], children: Child[], options: Options, say: (line: string) => void): Promise<Contender[]> {
  const path = (name: string) => fileURLToPath(new URL(name, import.meta.url));
  const begin = async (name: string, command: string, script: string, env: Record<string, string>): Promise<Contender> => {
    const child = startChild(command, [script, ...args], env);
    children.push(child);
    const { load_seconds } = await child.ask({ side: options.sizes[0] / 8 }, answerSchema);
    say(`${name} loaded in ${load_seconds.toFixed(1)} s`);
    return { name, child, answers: [] };
  };
  const contenders = [await begin(ours, process.execPath, path("children/unet.ts"), {})];
  if (!options.python) say("no peers: name a Python with --python or ATELIER_PYTHON to have PyTorch and OpenVINO beside it");
  for (const [name, { script, env }] of Object.entries(options.python ? peers : {})) {
    try {
      contenders.push(await begin(name, options.python!, path(`peers/${script}`), env));
    } catch (error) {
      say(`${name} is left out: ${error instanceof Error ? error.message : error}`);
    }
  }
  return contenders;
}

/** Rounds in turns, so that a change of the machine's speed meets all alike. */
async function compare(contenders: readonly Contender[], pixels: number, rounds: number, say: (line: string) => void): Promise<Row[]> {
  for (const contender of contenders) {
    contender.answers = [];
    for (let run = 0; run < WARM_UPS; run++) await contender.child.ask({ side: pixels / 8 }, answerSchema);
  }
  for (let round = 0; round < rounds; round++)
    for (const { child, answers } of contenders) answers.push(await child.ask({ side: pixels / 8 }, answerSchema));
  say(`${pixels} px done`);
  const [own] = contenders;
  for (const { name, answers } of contenders) requireSameResult(name, answers[0]!.rms, own!.answers[0]!.rms);
  const secondsOf = ({ answers }: Contender) => answers.map(({ seconds }) => seconds);
  return contenders.map(contender => ({
    px: pixels,
    what: contender.name,
    "median s": median(secondsOf(contender)),
    "min s": Math.min(...secondsOf(contender)),
    "ours / it": medianRatio(secondsOf(own!), secondsOf(contender)),
    "peak MB": Math.max(...contender.answers.map(({ peak_bytes }) => peak_bytes)) / 1e6,
    "load s": contender.answers[0]!.load_seconds,
  }));
}

/** A comparison of speed is worth something only where both compute the same. */
function requireSameResult(name: string, got: number, expected: number): void {
  if (!(Math.abs(got - expected) <= 1e-3 * expected))
    throw new Error(`${name} computes something else: expected outputs of RMS ${expected}, got ${got}.`);
}
