/** Which tensors of textual inversion files are whose rows: one table row per published layout. */
import { FileError } from "../file-error.ts";

/** Rows of one text encoder. */
export interface InversionRows {
  key: string;
  /** [n, C] or [C]. */
  shape: readonly number[];
  /** 0: `text_encoder`, 1: SDXL's second; null where only its width tells. */
  encoder: number | null;
}

export interface InversionFile {
  layout: string;
  /** The word in the file. */
  token: string | null;
  rows: readonly InversionRows[];
  skipped: readonly { key: string; why: string }[];
}

interface Layout {
  layout: string;
  /** What a key means; undefined where it is none of this layout's. */
  encoderOf(key: string): number | null | "output" | undefined;
}

const table = (keys: Readonly<Record<string, number | null | "output">>) => (key: string) =>
  Object.hasOwn(keys, key) ? keys[key] : undefined;

/** In the order in which they are tried; the last takes any single name for the token. */
export const inversionLayouts = [
  { layout: "a1111", encoderOf: key => (key.startsWith("string_to_param.") ? null : undefined) },
  { layout: "kohya", encoderOf: table({ emb_params: null }) },
  { layout: "onetrainer", encoderOf: table({ emp_params: null, emp_params_out: "output" }) },
  { layout: "clip_l-clip_g", encoderOf: table({ clip_l: 0, clip_g: 1, clip_l_out: "output", clip_g_out: "output" }) },
  { layout: "replicate", encoderOf: table({ text_encoders_0: 0, text_encoders_1: 1 }) },
] as const satisfies readonly Layout[];
export const inversionLayoutNames = [...inversionLayouts.map(({ layout }) => layout), "diffusers"] as const;

/** An optimiser's leavings in A1111's files: numbers, not tensors, so they never get here; tensors that do are unknown. */
const outputOnly = "rows for the text encoder's result, which nothing reads; the rows for its input are used";

/** Null where a file's tensors are no textual inversion. Throws FileError for one that is broken. `word`: the name that is stored beside. */
export function readInversionKeys(tensors: ReadonlyMap<string, { shape: readonly number[] }>, word: string | null): InversionFile | null {
  const keys = [...tensors.keys()];
  const found = inversionLayouts.find(({ encoderOf }) => keys.some(key => encoderOf(key) !== undefined));
  if (found) return ofLayout(found, tensors, word);
  const [key] = keys;
  if (key === undefined || keys.length > 1 || !isRows(tensors.get(key)!.shape)) return null;
  return { layout: "diffusers", token: key, rows: [{ key, shape: tensors.get(key)!.shape, encoder: null }], skipped: [] };
}

function ofLayout(
  { layout, encoderOf }: Layout,
  tensors: ReadonlyMap<string, { shape: readonly number[] }>,
  word: string | null,
): InversionFile {
  const rows: InversionRows[] = [];
  const skipped: { key: string; why: string }[] = [];
  for (const [key, { shape }] of tensors) {
    const encoder = encoderOf(key);
    if (encoder === undefined) throw new FileError(key, `a tensor of the textual inversion layout ${layout}`, "an unknown name");
    if (!isRows(shape)) throw new FileError(key, "rows [n, width] of at most 1000", `[${shape}]`);
    if (encoder === "output") skipped.push({ key, why: outputOnly });
    else rows.push({ key, shape, encoder });
  }
  if (rows.length === 0) throw new FileError(skipped[0]!.key, "rows for the text encoder's input", "rows for its result alone");
  const repeated = rows.find((row, i) => rows.findIndex(({ encoder }) => encoder === row.encoder) < i);
  if (repeated) throw new FileError(repeated.key, "one word per file", "a second one");
  return { layout, token: word, rows, skipped };
}

function isRows(shape: readonly number[]): boolean {
  return (shape.length === 1 || (shape.length === 2 && shape[0]! <= 1000)) && shape.every(dim => dim > 0);
}

const bundled = /^bundle_emb\.(.+)\.(clip_l|clip_g|clip_l_out|clip_g_out|emb_params|emp_params|emp_params_out|string_to_param\.[^.]*)$/;

/** A key of an inversion that is bundled with a LoRA (OneTrainer); null for any other. */
export function bundledKey(key: string): { token: string; key: string } | null {
  const match = bundled.exec(key);
  return match && { token: match[1]!, key: match[2]! };
}
