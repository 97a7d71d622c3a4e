/** One kind of reference case: how its outputs are computed with the product's own code. */
import type { TensorF32, TrainableModel } from "../components.ts";

/** A reference tensor: fp32, or int32 for token ids. */
export interface GoldenTensor {
  data: ArrayLike<number>;
  shape: readonly number[];
}

/** An output that has to be equal to a member of `expectedJson`, such as token ids. */
export interface GoldenJson {
  json: unknown;
}

/** An adapter of a case. */
export interface GoldenAdapter {
  /** A file or a folder, relative to the folder of the cases. */
  file: string;
  kind: string;
  weight: number;
  /** Of a textual inversion: the word that stands for it in the prompt. */
  token?: string;
  /** Of an inversion in one file per text encoder: 1 or 2. */
  textEncoder?: number;
  /** Shares of the run between which it works. */
  start?: number;
  end?: number;
}

/** An output that is not there because the case's file was refused; it counts where the case demands that (`params.mustRefuse`). */
export interface GoldenRefusal {
  refused: string;
}

/** A row of `cases.json`. `inputs` and `expected` map a name to the name of a tensor in the file `tensors`. */
export interface GoldenCase {
  name: string;
  kind: string;
  model?: string;
  adapters?: readonly GoldenAdapter[];
  params: Readonly<Record<string, unknown>>;
  tensors?: string;
  inputs: Readonly<Record<string, string>>;
  expected: Readonly<Record<string, string>>;
  expectedJson?: unknown;
  tolerance?: Tolerance;
  /** By output; where one is absent, `tolerance` holds. */
  tolerances?: Readonly<Record<string, Tolerance>>;
  reference?: string;
}

/** A value passes where |got - want| <= atol + rtol * |want|. */
export interface Tolerance {
  atol: number;
  rtol: number;
}

export interface VerifyContext {
  /** Absolute path of the case's model folder or file; throws where the case names none. */
  modelPath: string;
  cacheDir: string;
  /** Absolute path of a file or folder that the case names, such as an adapter's; throws where it leads out of the folder that holds the cases' one. */
  path(relative: string): string;
  /** The case's input by its name; throws where there is none. */
  input(name: string): GoldenTensor;
  /** The case's model, loaded once per run however many cases use it. */
  model(): Promise<TrainableModel>;
}

/** An input that is to be fp32. */
export function float32Input(context: VerifyContext, name: string): TensorF32 {
  const { data, shape } = context.input(name);
  return { data: data instanceof Float32Array ? data : Float32Array.from(data), shape };
}

export interface VerifyKind {
  kind: string;
  /** Why this case cannot be computed; null where it can. `modelPath` is absolute, null where the case names no model. */
  supports(goldenCase: GoldenCase, modelPath: string | null): string | null;
  run(goldenCase: GoldenCase, context: VerifyContext): Promise<Record<string, GoldenTensor | GoldenJson | GoldenRefusal>>;
}
