/** A trained model as a whole, in its base's own layout: the base's files again, with the trained tensors in their places. */
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { z } from "zod";
import { MAX_RUNNER_FILE_BYTES } from "../../../shared/file-parts.ts";
import { parseJson } from "../../../shared/json.ts";
import type { ComponentName, KeyLayout, KeyUse } from "../../weights/key-layouts.ts";
import type { ModelSource } from "../../weights/model-source.ts";
import { withSafetensors } from "../../weights/safetensors.ts";
import { bytesOf, type TensorToWrite, writeSafetensors } from "../../weights/safetensors-write.ts";

/** A trained tensor's elements row by row, by the graphs' name; null: the base's own. */
export type TrainedWeight = (component: ComponentName, name: string) => Float32Array | null;

/** Room for the header beside the weights. */
export const mostWeightBytes = MAX_RUNNER_FILE_BYTES - 2 ** 20;

/**
 * @returns paths below the folder, of a diffusers folder `model/` or a single file `model/model.safetensors`; none where a file were too
 * large to be sent
 */
export function writeTrainedModel(folder: string, source: ModelSource, trained: TrainedWeight): string[] {
  if (source.weights.some(({ file, keys }) => rewrittenBytes(file, keys, trained) > mostWeightBytes)) return [];
  const layouts = new Map(source.weights.map(({ file, keys }) => [file, keys]));
  const paths = source.files.map(([name, file]) => {
    const path = join("model", name);
    const target = join(folder, path);
    mkdirSync(dirname(target), { recursive: true });
    const keys = layouts.get(file);
    if (keys) rewriteWeights(file, target, keys, trained);
    else if (source.layout === "single-file" && name === "model.json") writeConfigs(file, target);
    else copyFileSync(file, target);
    return path;
  });
  return [...paths, ...writeRecommendation(folder, source)];
}

function rewrittenBytes(path: string, keys: KeyLayout, trained: TrainedWeight): number {
  const entries = withSafetensors(path, ({ entries }) => [...entries.values()]);
  return entries.reduce((sum, { name, shape, byteLength }) => {
    const fate = keys(name);
    const isTrained = Array.isArray(fate) && trainedKey(fate, shape, trained) !== null;
    return sum + (isTrained ? 4 * shape.reduce((a, b) => a * b, 1) : byteLength);
  }, 0);
}

/** Trained tensors in fp32, since what a training moves is less than half precision tells apart; all others as they are. */
function rewriteWeights(from: string, to: string, keys: KeyLayout, trained: TrainedWeight): void {
  withSafetensors(from, file => {
    const tensors = [...file.entries.values()].map(({ name, dtype, shape }): TensorToWrite => {
      const fate = keys(name);
      const values = Array.isArray(fate) ? trainedKey(fate, shape, trained) : null;
      if (!values) return { name, dtype, shape, data: () => [file.readBytes(name)] };
      return { name, dtype: "F32", shape, data: () => values().map(bytesOf) };
    });
    writeSafetensors(to, tensors, { metadata: file.metadata });
  });
}

/** The pieces of a key in their order; null where none was trained. */
function trainedKey(uses: readonly KeyUse[], shape: readonly number[], trained: TrainedWeight): (() => Float32Array[]) | null {
  const found = uses.map(use => ({ use, values: trained(use.component, use.name) }));
  if (found.some(({ values }) => values === null) || found.length === 0) return null;
  const ordered = found.toSorted((a, b) => (a.use.piece?.index ?? 0) - (b.use.piece?.index ?? 0));
  return () => ordered.map(({ use, values }) => (use.transposed ? transposed(values!, shape[0]!) : values!));
}

/** [columns, rows] to [rows, columns]. */
export function transposed(values: Float32Array, rows: number): Float32Array {
  const columns = values.length / rows;
  return values.map((_, i) => values[(i % columns) * rows + Math.floor(i / columns)]!);
}

/** Configs beside a single file name its tokenizers' folders, which lie with it here. */
function writeConfigs(from: string, to: string): void {
  const configs = z.looseObject({}).parse(parseJson(readFileSync(from, "utf8")));
  const folders = ["tokenizer", "tokenizer_2"].filter(name => Object.hasOwn(configs, name)).map(name => [name, name]);
  writeFileSync(to, JSON.stringify({ ...configs, ...Object.fromEntries(folders) }, null, 2));
}

/** What the base's author recommends holds for what was made of it, under another name. */
function writeRecommendation(folder: string, { path, layout }: ModelSource): string[] {
  const from = layout === "diffusers" ? join(path, "atelier.json") : path.replace(/\.safetensors$/, ".atelier.json");
  if (!existsSync(from)) return [];
  const { name: _name, description: _description, ...rest } = z.looseObject({}).parse(parseJson(readFileSync(from, "utf8")));
  const to = layout === "diffusers" ? "model/atelier.json" : "model/model.atelier.json";
  writeFileSync(join(folder, to), JSON.stringify(rest, null, 2));
  return [to];
}
