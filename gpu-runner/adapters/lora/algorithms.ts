/**
 * What each LoRA and LyCORIS algorithm adds to a weight [out, in, …kernel], at weight 1. Sources: Hu et al. 2021 (LoRA), Yeh et al. 2023
 * (LyCORIS: LoHa, LoKr, tucker forms), Chavan et al. 2023 (GLoRA), Liu et al. 2022 ((IA)3), and the code of sd-scripts and LyCORIS.
 */
import type { LoraAlgorithm, LoraPart } from "../../../shared/adapters/lora-keys.ts";
import { ModelError } from "../../weights/model-error.ts";
import type { LowRank } from "../adapter.ts";
import { kronecker, type Matrix, multiply, transposed, tucker } from "./linear-algebra.ts";

/** A tensor of the file. */
export interface PartTensor {
  key: string;
  shape: readonly number[];
  data: Float32Array;
}

/** The tensors of one module, and the weight that they change. */
export interface ModuleParts {
  file: string;
  /** The module's name in the file. */
  module: string;
  parts: ReadonlyMap<LoraPart, PartTensor>;
  out: number;
  inputs: number;
  /** Values of a kernel: 1 for a linear layer. */
  spatial: number;
  /** alpha / rank, or as the file's configuration says. */
  scaleOf(rank: number): number;
}

/** Elements of the change, row by row; `base` is the weight itself, which some changes depend on. */
export type Delta = (base: Float32Array) => ArrayLike<number>;

interface Change {
  delta: Delta;
  lowRank?: LowRank;
}

export const algorithms = {
  lora,
  loha,
  lokr,
  glora,
  full: module => wholeTensor(module, "diff"),
  norm: module => wholeTensor(module, "norm"),
  ia3,
} satisfies Record<LoraAlgorithm, (module: ModuleParts) => Change>;

/** A part's tensor. Throws ModelError naming what is missing. */
export function requirePart({ file, module, parts }: ModuleParts, part: LoraPart): PartTensor {
  const found = parts.get(part);
  if (!found) throw new ModelError(file, module, `a tensor "${part}" beside ${[...parts.values()][0]?.key ?? "it"}`, "none");
  return found;
}

/** A part as a matrix; whatever follows its first dimension is a row. Throws ModelError where it has other sizes. */
function matrix(module: ModuleParts, part: LoraPart, rows: number, columns: number): Matrix {
  const { key, shape, data } = requirePart(module, part);
  if (shape.length < 2 || shape[0] !== rows || data.length !== rows * columns)
    throw new ModelError(module.file, key, `[${rows}, ${columns}]`, `[${shape}]`);
  return { data, rows, columns };
}

function dimOf(module: ModuleParts, part: LoraPart, axis: number): number {
  const { key, shape } = requirePart(module, part);
  const dim = shape[axis];
  if (dim === undefined || dim < 1) throw new ModelError(module.file, key, "a matrix with rows and columns", `[${shape}]`);
  return dim;
}

/** up x down * scale; with `mid`, the convolution's kernel stands in the middle (CP form). */
function lora(module: ModuleParts): Change {
  const { out, inputs, spatial } = module;
  const rank = dimOf(module, "down", 0);
  const scale = module.scaleOf(rank);
  const up = matrix(module, "up", out, rank);
  if (module.parts.has("mid")) {
    const down = matrix(module, "down", rank, inputs);
    const mid = matrix(module, "mid", rank, rank * spatial);
    return { delta: () => scaled(tucker(up, mid.data, down, spatial).data, scale) };
  }
  const down = matrix(module, "down", rank, inputs * spatial);
  const delta: Delta = () => scaled(multiply(up, down).data, scale);
  if (spatial > 1) return { delta };
  const [upPart, downPart] = [requirePart(module, "up"), requirePart(module, "down")];
  return { delta, lowRank: { rank, down: downPart.data, up: upPart.data, scale } };
}

/** The element-wise product of two low-rank products. Tucker's factors are [rank, out] and [rank, in]. */
function loha(module: ModuleParts): Change {
  const { out, inputs, spatial } = module;
  const rank = dimOf(module, "hadaW1b", 0);
  const scale = module.scaleOf(rank);
  const factor = (a: LoraPart, b: LoraPart, t: LoraPart): (() => Float64Array) => {
    if (!module.parts.has(t)) {
      const [left, right] = [matrix(module, a, out, rank), matrix(module, b, rank, inputs * spatial)];
      return () => multiply(left, right).data;
    }
    const [left, right, core] = [matrix(module, a, rank, out), matrix(module, b, rank, inputs), matrix(module, t, rank, rank * spatial)];
    // t's first dimension goes with `a`, its second with `b`.
    return () => tucker(transposed(left), core.data, right, spatial).data;
  };
  const [first, second] = [factor("hadaW1a", "hadaW1b", "hadaT1"), factor("hadaW2a", "hadaW2b", "hadaT2")];
  return {
    delta() {
      const [one, two] = [first(), second()];
      for (let i = 0; i < one.length; i++) one[i]! *= two[i]! * scale;
      return one;
    },
  };
}

/** The Kronecker product of two matrices, each whole or low-rank. The scale is alpha / rank only where one is low-rank. */
function lokr(module: ModuleParts): Change {
  const { out, inputs, spatial } = module;
  const rows = module.parts.has("lokrW1") ? dimOf(module, "lokrW1", 0) : dimOf(module, "lokrW1a", 0);
  const columns = module.parts.has("lokrW1") ? dimOf(module, "lokrW1", 1) : dimOf(module, "lokrW1b", 1);
  const first = requirePart(module, module.parts.has("lokrW1") ? "lokrW1" : "lokrW1a");
  if (out % rows !== 0 || inputs % columns !== 0)
    throw new ModelError(module.file, first.key, `divisors of ${out} and ${inputs}`, `[${rows}, ${columns}]`);
  const left = lokrLeft(module, rows, columns);
  const right = lokrRight(module, out / rows, inputs / columns);
  const rank = right.rank ?? left.rank;
  const scale = rank === null ? 1 : module.scaleOf(rank);
  return { delta: () => scaled(kronecker(left.make(), right.make(), spatial), scale) };
}

interface KroneckerFactor {
  /** Null where the factor is whole. */
  rank: number | null;
  make(): Matrix;
}

function lokrLeft(module: ModuleParts, rows: number, columns: number): KroneckerFactor {
  if (module.parts.has("lokrW1")) {
    const whole = matrix(module, "lokrW1", rows, columns);
    return { rank: null, make: () => whole };
  }
  const rank = dimOf(module, "lokrW1b", 0);
  const [a, b] = [matrix(module, "lokrW1a", rows, rank), matrix(module, "lokrW1b", rank, columns)];
  return { rank, make: () => multiply(a, b) };
}

function lokrRight(module: ModuleParts, rows: number, columns: number): KroneckerFactor {
  const { spatial } = module;
  if (module.parts.has("lokrW2")) {
    const whole = matrix(module, "lokrW2", rows, columns * spatial);
    return { rank: null, make: () => whole };
  }
  const rank = dimOf(module, "lokrW2b", 0);
  if (module.parts.has("lokrT2")) {
    const [a, b] = [matrix(module, "lokrW2a", rank, rows), matrix(module, "lokrW2b", rank, columns)];
    const core = matrix(module, "lokrT2", rank, rank * spatial);
    return { rank, make: () => tucker(transposed(a), core.data, b, spatial) };
  }
  const [a, b] = [matrix(module, "lokrW2a", rows, rank), matrix(module, "lokrW2b", rank, columns * spatial)];
  return { rank, make: () => multiply(a, b) };
}

/**
 * W a + b, with a and b low-rank. LyCORIS 2 saves a1 [in, r], a2 [r, in], b1 [out, r], b2 [r, in], in the order of the products; before
 * it was a1 [r, in], a2 [in, r], b1 [r, in], b2 [out, r], the other way round. Shapes tell them apart; where all are square, it is the old one.
 */
function glora(module: ModuleParts): Change {
  const { out, inputs, spatial } = module;
  const { key } = requirePart(module, "gloraA1");
  if (spatial > 1) throw new ModelError(module.file, key, "a linear layer or 1x1 convolution", `a kernel of ${spatial} values`);
  const names = ["gloraA1", "gloraA2", "gloraB1", "gloraB2"] as const;
  const shapes = names.map(name => requirePart(module, name).shape.slice(0, 2).join());
  const fits = (wanted: readonly (readonly number[])[]) => wanted.every((shape, i) => shape.join() === shapes[i]);
  const [newRank, oldRank] = [dimOf(module, "gloraA1", 1), dimOf(module, "gloraA1", 0)];
  const isNew = fits([
    [inputs, newRank],
    [newRank, inputs],
    [out, newRank],
    [newRank, inputs],
  ]);
  const isOld = fits([
    [oldRank, inputs],
    [inputs, oldRank],
    [oldRank, inputs],
    [out, oldRank],
  ]);
  if (!isNew && !isOld)
    throw new ModelError(module.file, key, `factors for a weight [${out}, ${inputs}]`, shapes.map(s => `[${s}]`).join());
  const rank = isOld ? oldRank : newRank;
  const order = isOld ? (["gloraA2", "gloraA1", "gloraB2", "gloraB1"] as const) : names;
  const [a1, a2] = [matrix(module, order[0], inputs, rank), matrix(module, order[1], rank, inputs)];
  const [b1, b2] = [matrix(module, order[2], out, rank), matrix(module, order[3], rank, inputs)];
  const scale = module.scaleOf(rank);
  return {
    delta(base) {
      const sum = multiply(b1, b2).data;
      const onBase = multiply(multiply({ data: base, rows: out, columns: inputs }, a1), a2).data;
      for (let i = 0; i < sum.length; i++) sum[i] = (sum[i]! + onBase[i]!) * scale;
      return sum;
    },
  };
}

/** A difference of the tensor's own shape. */
function wholeTensor(module: ModuleParts, part: "diff" | "norm"): Change {
  const { key, shape, data } = requirePart(module, part);
  const expected = module.out * module.inputs * module.spatial;
  if (shape[0] !== module.out || data.length !== expected) throw new ModelError(module.file, key, `${expected} elements`, `[${shape}]`);
  return { delta: () => data };
}

/** W w, per input column or per output row. */
function ia3(module: ModuleParts): Change {
  const { out, inputs, spatial } = module;
  const onInput = requirePart(module, "ia3OnInput").data[0] !== 0;
  const { key, shape, data } = requirePart(module, "ia3");
  if (data.length !== (onInput ? inputs : out)) throw new ModelError(module.file, key, `${onInput ? inputs : out} elements`, `[${shape}]`);
  return {
    delta: base =>
      Float64Array.from(base, (value, i) => value * data[onInput ? Math.floor(i / spatial) % inputs : Math.floor(i / (inputs * spatial))]!),
  };
}

function scaled(values: Float64Array, scale: number): Float64Array {
  if (scale !== 1) for (let i = 0; i < values.length; i++) values[i]! *= scale;
  return values;
}
