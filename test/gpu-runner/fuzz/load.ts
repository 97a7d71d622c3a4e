/** Loads a spoilt file as the product would, and checks that what was loaded is sound. */
import { closeSync, openSync, statSync } from "node:fs";
import type { LoraAdapter, TextualInversion, WeightShapes } from "../../../gpu-runner/adapters/adapter.ts";
import { adapterDiskFiles } from "../../../gpu-runner/adapters/content-hash.ts";
import { openHyperNetwork } from "../../../gpu-runner/adapters/hypernetwork.ts";
import { openLora } from "../../../gpu-runner/adapters/lora/lora.ts";
import { fileSource } from "../../../gpu-runner/adapters/tensor-file.ts";
import { openTextualInversion } from "../../../gpu-runner/adapters/textual-inversion.ts";
import { checkModel, requireSound } from "../../../gpu-runner/inspect.ts";
import { ModelError } from "../../../gpu-runner/weights/model-error.ts";
import { openModel } from "../../../gpu-runner/weights/model-source.ts";
import { detectAdapter } from "../../../shared/adapter-detection.ts";
import { FileError } from "../../../shared/file-error.ts";

const hash = `sha256:${"0".repeat(64)}`;

/** Shapes of a base; reads headers alone. */
export function baseShapes(folder: string): WeightShapes {
  const { parts } = checkModel(openModel(folder));
  return Object.fromEntries([...parts].filter(([name]) => name !== "vae").map(([name, { shapes }]) => [name, shapes]));
}

export type Outcome = { loaded: string } | { refused: string };

/** @throws whatever is neither a load nor a refusal that names file and place */
export async function loadModel(folder: string): Promise<Outcome> {
  return refusalOf(async () => {
    const checked = checkModel(openModel(folder));
    requireSound(checked);
    return "model";
  });
}

/** The edge's look at the headers, then the runner's reading. @throws as above */
export async function loadAdapter(path: string, shapes: WeightShapes): Promise<Outcome> {
  return refusalOf(async () => {
    const files = adapterDiskFiles(path);
    const descriptors = files.map(({ file }) => openSync(file, "r"));
    try {
      const sources = files.map((file, i) => ({ path: file.path, source: fileSource(descriptors[i]!) }));
      const { kind, parameters } = await detectAdapter(sources);
      if (!Number.isSafeInteger(parameters)) throw new Error(`parameters: ${parameters}`);
      if (kind === "lora") checkLora(await openLora(files, hash, shapes), shapes);
      else if (kind === "textual-inversion") checkInversion(await openTextualInversion(files, hash, shapes));
      else if (kind === "hypernetwork") await openHyperNetwork(files, hash);
      return kind;
    } finally {
      descriptors.forEach(closeSync);
    }
  });
}

async function refusalOf(load: () => Promise<string>): Promise<Outcome> {
  try {
    return { loaded: await load() };
  } catch (error) {
    if (!(error instanceof ModelError) && !(error instanceof FileError)) throw error;
    if (error.key === "") throw new Error(`a refusal that names no place: ${error.message}`);
    return { refused: error.message };
  }
}

/** Every change fits its tensor; a few are merged. */
function checkLora({ changes }: LoraAdapter, shapes: WeightShapes): void {
  changes.forEach(({ component, name, shape, lowRank, merge }, i) => {
    const size = shape.reduce((product, dim) => product * dim, 1);
    if (String(shapes[component]?.get(name)) !== String(shape)) throw new Error(`${name}: a change of shape [${shape}]`);
    if (lowRank && lowRank.down.length * lowRank.up.length !== size * lowRank.rank ** 2)
      throw new Error(`${name}: factors that do not fit`);
    if (i < 4 && merge(new Float32Array(size).fill(0.5), 0.7, null).length !== size) throw new Error(`${name}: merged to another size`);
  });
}

function checkInversion({ vectors }: TextualInversion): void {
  for (const rows of vectors)
    if (rows && rows.data.length !== rows.shape[0]! * rows.shape[1]!)
      throw new Error(`rows [${rows.shape}] of ${rows.data.length} elements`);
}

/** Bytes of a file or of all files in its folder. */
export function sizeOf(path: string): number {
  return statSync(path).isDirectory() ? adapterDiskFiles(path).reduce((sum, { bytes }) => sum + bytes, 0) : statSync(path).size;
}
