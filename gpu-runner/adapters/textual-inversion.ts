/** Textual inversions (Gal et al. 2022) of every published layout: rows of token embeddings, per text encoder. */
import { bundledKey, type InversionRows, readInversionKeys } from "../../shared/adapters/inversion-keys.ts";
import type { TensorF32 } from "../components.ts";
import { ModelError } from "../weights/model-error.ts";
import type { AdapterComponent, TextualInversion, WeightShapes } from "./adapter.ts";
import type { DiskFile } from "./content-hash.ts";
import { type TensorFile, withTensorFile } from "./tensor-file.ts";
import { textEncoders } from "./text-encoders.ts";

/** Where rows came from. */
interface Source {
  file: string;
  layout: string;
  token: string | null;
  rows: (InversionRows & { data: Float32Array })[];
  skipped: readonly { key: string; why: string }[];
}

/**
 * One file, or one per text encoder: then `encoders` says whose each is (0 or 1); without it, the one named `…_2` is the second's.
 * Throws ModelError naming the key whose width fits no text encoder of the base.
 */
export async function openTextualInversion(
  files: readonly DiskFile[],
  hash: string,
  shapes: WeightShapes,
  encoders?: readonly number[],
): Promise<TextualInversion> {
  const weights = files.filter(({ path }) => !path.endsWith(".json"));
  if (weights.length === 0 || weights.length > 2) throw new ModelError(files[0]!.file, "files", "one or two files", String(weights.length));
  const sources: Source[] = [];
  for (const [i, { file: path }] of weights.entries()) {
    const encoder = encoders?.[i] ?? (weights.length === 2 ? Number(/_2\.[a-z]+$/.test(path)) : null);
    sources.push(await withTensorFile(path, file => readSource(file, file.tensors, storedWord(file), encoder, key => key)));
  }
  return assemble(sources, hash, shapes);
}

/** A1111 stores the name that the embedding was given. */
function storedWord({ pickled }: TensorFile): string | null {
  const name = pickled?.get("name");
  return typeof name === "string" && name !== "" ? name : null;
}

function readSource(
  file: TensorFile,
  tensors: TensorFile["tensors"],
  word: string | null,
  encoder: number | null,
  keyInFile: (key: string) => string,
): Source {
  const found = readInversionKeys(tensors, word);
  if (!found) throw new ModelError(file.path, [...tensors.keys()][0] ?? "file", "a textual inversion", "other tensors");
  const rows = found.rows.map(row => {
    const key = keyInFile(row.key);
    const data = file.read(key);
    if (!data.every(Number.isFinite)) throw new ModelError(file.path, key, "finite numbers", "others");
    return { ...row, key, encoder: row.encoder ?? encoder, data };
  });
  return { file: file.path, layout: found.layout, token: found.token, rows, skipped: found.skipped };
}

function assemble(sources: readonly Source[], hash: string, shapes: WeightShapes): TextualInversion {
  const base = textEncoders(shapes);
  const vectors: (TensorF32 | null)[] = base.map(() => null);
  const skipped = sources.flatMap(source => source.skipped);
  const used: string[] = [];
  const file = sources[0]!.file;
  for (const { key, shape, encoder, data } of sources.flatMap(source => source.rows)) {
    const width = shape.at(-1)!;
    const index = encoderIndex(base, encoder, width);
    if (index === -1 && encoder === 0 && !shapes.textEncoder) {
      skipped.push({ key, why: "the base has no first text encoder" });
      continue;
    }
    if (index === -1 || vectors[index])
      throw new ModelError(file, key, `a width of the base's text encoders (${base.map(found => found.width)})`, String(width));
    vectors[index] = { data, shape: [data.length / width, width] };
    used.push(key);
  }
  const counts = new Set(vectors.flatMap(rows => rows?.shape[0] ?? []));
  if (counts.size !== 1) throw new ModelError(file, "rows", "as many for each text encoder", [...counts].join(" and "));
  const layout = sources.length > 1 ? `${sources[0]!.layout} (two files)` : sources[0]!.layout;
  const token = sources.find(source => source.token !== null)?.token ?? null;
  return { kind: "textual-inversion", hash, report: { layout, used, skipped }, token, vectors };
}

/** Of the encoder that the file names, or the first of that width; -1 where there is none. */
function encoderIndex(base: readonly { component: AdapterComponent; width: number }[], encoder: number | null, width: number): number {
  return base.findIndex(
    found => found.width === width && (encoder === null || found.component === (encoder === 0 ? "textEncoder" : "textEncoder2")),
  );
}

export function isBundled(key: string): boolean {
  return bundledKey(key) !== null;
}

/** Inversions that a trainer bundled with a LoRA, by their words. Throws ModelError as above. */
export function bundledInversions(file: TensorFile, keys: readonly string[], hash: string, shapes: WeightShapes): TextualInversion[] {
  const words = new Map<string, string[]>();
  for (const key of keys) {
    const { token } = bundledKey(key)!;
    words.set(token, [...(words.get(token) ?? []), key]);
  }
  return [...words].map(([token, list]) => {
    const tensors = new Map(list.map(key => [bundledKey(key)!.key, file.tensors.get(key)!]));
    const source = readSource(file, tensors, token, null, key => `bundle_emb.${token}.${key}`);
    return { ...assemble([{ ...source, token }], `${hash}/${token}`, shapes), token };
  });
}
