/**
 * `node scripts/select-goldens.ts <source> <destination>`: copies from a folder of reference cases those that `npm test` runs, with only the
 * tensors and models that they need.
 */
import { cpSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { schedulerClasses } from "../gpu-runner/schedulers/config.ts";
import { readCases } from "../gpu-runner/verify/cases.ts";
import type { GoldenCase } from "../gpu-runner/verify/kind.ts";
import { caseMethods } from "../gpu-runner/verify/kinds/train-methods.ts";
import { withSafetensors } from "../gpu-runner/weights/safetensors.ts";
import { type TensorToWrite, writeSafetensors } from "../gpu-runner/weights/safetensors-write.ts";

const adapterKinds = [
  "lora",
  "textual-inversion",
  "hypernetwork",
  "hypernetwork-pickle",
  "ip-adapter",
  "controlnet",
  "t2i-adapter",
  "combined",
];
const trainingKinds = ["train-gradient", "train-trajectory"];
const modelKinds = ["text-encoder", "unet", "vae-encode", "vae-decode"];

function isSelected({ kind, params }: GoldenCase): boolean {
  const scheduled = schedulerClasses.some(name => name === params.scheduler);
  if (kind === "tokenizer") return true;
  if (kind === "noise") return true;
  if (kind === "scheduler") return scheduled;
  if (adapterKinds.includes(kind)) return true;
  if (modelKinds.includes(kind)) return true;
  if (trainingKinds.includes(kind)) return Object.hasOwn(caseMethods, String(params.method));
  return kind === "pipeline" && scheduled;
}

function configsOf(model: string): string {
  return model.replace(/\.safetensors$/, ".json");
}

/** Files and folders that a case names beside its model. */
function adapterPaths({ adapters = [], params }: GoldenCase): string[] {
  const named = ["options", "imageEncoder", "config"].map(name => params[name]).filter(value => typeof value === "string");
  return [...adapters.map(({ file }) => file), ...named];
}

/** Writes the named tensors of one file, in the file's order. */
function copyTensors(source: string, destination: string, names: ReadonlySet<string>): void {
  mkdirSync(dirname(destination), { recursive: true });
  withSafetensors(source, file => {
    const entries = [...file.entries.values()].filter(({ name }) => names.has(name));
    const tensors = entries.map(({ name, dtype, shape }): TensorToWrite => ({ name, dtype, shape, data: () => [file.readBytes(name)] }));
    writeSafetensors(destination, tensors);
  });
}

const [source, destination] = process.argv.slice(2);
if (source === undefined || destination === undefined) throw new Error("usage: node scripts/select-goldens.ts <source> <destination>");
const selected = readCases(source).filter(isSelected);
rmSync(destination, { recursive: true, force: true });
mkdirSync(destination, { recursive: true });
writeFileSync(join(destination, "cases.json"), `[\n${selected.map(row => JSON.stringify(row)).join(",\n")}\n]\n`);

for (const model of new Set(selected.flatMap(({ model }) => model ?? []))) {
  cpSync(join(source, model), join(destination, model), { recursive: true });
  // A single file's configs lie beside it.
  if (model.endsWith(".safetensors")) cpSync(join(source, configsOf(model)), join(destination, configsOf(model)));
}
for (const path of new Set(selected.flatMap(adapterPaths))) cpSync(join(source, path), join(destination, path), { recursive: true });
const files = Map.groupBy(
  selected.filter(({ tensors }) => tensors !== undefined),
  ({ tensors }) => tensors!,
);
for (const [file, cases] of files) {
  const names = new Set(cases.flatMap(({ inputs, expected }) => [...Object.values(inputs), ...Object.values(expected)]));
  copyTensors(join(source, file), join(destination, file), names);
}
console.log(`${selected.length} cases, ${files.size} tensor files`);
