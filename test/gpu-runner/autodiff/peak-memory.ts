/**
 * Runs a small UNet's gradients in a process of its own: `node peak-memory.ts <folder> <JSON of smallUnet's options>` prints how many
 * bytes the run took at its worst beside what was there before it, and how many the plan says.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { planMemory } from "../../../gpu-runner/autodiff/memory-plan.ts";
import { emit, emitterFor } from "../../../gpu-runner/graph/emitter.ts";
import { createSession } from "../../../gpu-runner/session.ts";
import { smallUnet } from "./small-unet.ts";

const [folder, options] = process.argv.slice(2) as [string, string];

function status(field: "VmRSS" | "VmHWM"): number {
  return 1024 * Number(new RegExp(`${field}:\\s+(\\d+)`).exec(readFileSync("/proc/self/status", "utf8"))![1]);
}

const graph = smallUnet(folder, JSON.parse(options));
const planned = planMemory(emit(graph, emitterFor("cpu"))).peakBytes;
const session = await createSession(graph, { provider: "cpu", cacheDir: folder, threads: 1, training: true });
const feeds = Object.fromEntries(
  graph.inputs.map(({ name, shape }) => {
    const dims = shape as readonly number[];
    return [name, { shape: dims, data: Float32Array.from({ length: dims.reduce((a, b) => a * b, 1) }, (_, i) => Math.sin(i) / 4) }];
  }),
);
// The mark of the greatest so far is set back to what there is now.
writeFileSync("/proc/self/clear_refs", "5");
const before = status("VmRSS");
await session.run(feeds);
console.log(JSON.stringify({ planned, measured: status("VmHWM") - before }));
await session.release();
