/**
 * `node --expose-gc child.ts <goldens> <scratch> <first> <count>`: spoils and loads files, and tells of each case by a message. Memory is
 * the process's greatest resident size during a case (Linux), less the size before it.
 */
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { baseShapes, loadAdapter, loadModel, type Outcome, sizeOf } from "./load.ts";
import { mutate } from "./mutate.ts";
import { Random } from "./random.ts";

const [goldens, scratch, first, count] = process.argv.slice(2) as [string, string, string, string];
const model = join(goldens, "models/sd15");

/** An original: a file of a model, an adapter's file, or a file of an adapter's folder. */
interface Seed {
  kind: "model" | "adapter";
  /** What is loaded. */
  root: string;
  /** The file within it that is spoilt; "" where the root is the file. */
  file: string;
}

const adapters = join(goldens, "adapters");
const seeds: readonly Seed[] = [
  ...["lora", "ti", "hypernetwork"].flatMap(folder =>
    readdirSync(join(adapters, folder)).flatMap((name): Seed[] => {
      const root = join(adapters, folder, name);
      if (statSync(root).isDirectory()) return readdirSync(root).map(file => ({ kind: "adapter", root, file }));
      return name.endsWith(".json") ? [] : [{ kind: "adapter", root, file: "" }];
    }),
  ),
  ...["ip-adapter/ip-adapter-base.safetensors", "controlnet-original.safetensors", "t2i-adapter/diffusion_pytorch_model.safetensors"].map(
    (name): Seed => ({ kind: "adapter", root: join(goldens, "models", name), file: "" }),
  ),
  ...[
    "unet/diffusion_pytorch_model.safetensors",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/model.safetensors",
    "text_encoder/config.json",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "vae/diffusion_pytorch_model.safetensors",
  ].map((file): Seed => ({ kind: "model", root: model, file })),
];

const shapes = baseShapes(model);

/** A copy of the seed with one file spoilt; of a model the other files are links. */
function spoil({ root, file }: Seed, random: Random, folder: string): string {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  if (file === "") {
    const path = join(folder, `spoilt${/\.[a-z]+$/.exec(root)![0]}`);
    writeFileSync(path, mutate(root, readFileSync(root), random));
    return path;
  }
  const copy = join(folder, "spoilt");
  cpSync(root, copy, { recursive: true, filter: path => !path.endsWith(".safetensors") || dirname(path) === root });
  for (const name of readdirSync(root, { recursive: true, encoding: "utf8" }))
    if (name.endsWith(".safetensors") && name.includes("/") && name !== file) symlinkSync(join(root, name), join(copy, name));
  writeFileSync(join(copy, file), mutate(file, readFileSync(join(root, file)), random));
  return copy;
}

/** Bytes by a line of /proc/self/status; 0 where the system has none. */
function memory(line: "VmHWM" | "VmRSS"): number {
  try {
    return Number(new RegExp(`${line}:\\s+(\\d+)`).exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}

function resetPeak(): void {
  try {
    writeFileSync("/proc/self/clear_refs", "5");
  } catch {
    // Not Linux: the peak is then that of the whole process.
  }
}

for (let i = Number(first); i < Number(first) + Number(count); i++) {
  const random = new Random(i * 2654435761);
  const seed = random.pick(seeds);
  process.send?.({ begins: i });
  const path = spoil(seed, random, join(scratch, "case"));
  const bytes = sizeOf(seed.file === "" ? path : join(path, seed.file));
  globalThis.gc?.();
  resetPeak();
  const before = memory("VmRSS");
  const start = performance.now();
  let outcome: Outcome | { broken: string };
  try {
    outcome = seed.kind === "model" ? await loadModel(path) : await loadAdapter(path, shapes);
  } catch (error) {
    outcome = { broken: error instanceof Error ? (error.stack ?? error.message) : String(error) };
  }
  const ms = performance.now() - start;
  process.send?.({ i, seed: join(seed.root, seed.file), bytes, ms, peak: memory("VmHWM") - before, ...outcome });
}
process.disconnect();
