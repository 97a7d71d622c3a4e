/** A trained model as its difference from the base: whole, as LyCORIS' full module and norms, or its best low-rank part. */
import { inTextModel, kohyaModule, type LoraResult } from "./lora.ts";
import { lowRankFactors } from "./low-rank.ts";
import { type ResultTensor, writeTensors } from "./result.ts";

/** All elements of a weight of the base; a model's are too many to hold them beside the trained ones. */
export type BaseWeights = (name: string) => Float32Array;

/** Named `unet.<weight>`, `text_encoder.<weight>`; `base` has the same names. */
export interface FullResult {
  trained: readonly ResultTensor[];
  base: BaseWeights;
  hasTwoTextEncoders: boolean;
  metadata: Readonly<Record<string, string>>;
}

function difference({ name, data }: ResultTensor, { base }: FullResult): Float32Array {
  const before = base(name);
  return data.map((value, i) => value - before[i]!);
}

function place(name: string) {
  const [, component, module, kind] = /^(unet|text_encoder|text_encoder_2)\.(.*)\.(weight|bias)$/.exec(name) ?? [];
  if (component !== "unet" && component !== "text_encoder" && component !== "text_encoder_2") return null;
  return { component, module: component === "unet" ? module! : inTextModel(module!), kind: kind! } as const;
}

/** @returns the file's path */
export function writeFullDifference(folder: string, result: FullResult): string[] {
  // A layer of one dimension is a norm; its bias goes by another name than a linear layer's.
  const norms = new Set(result.trained.filter(({ name, shape }) => name.endsWith(".weight") && shape.length === 1).map(({ name }) => name));
  const tensors = result.trained.flatMap((tensor): ResultTensor[] => {
    const found = place(tensor.name);
    if (!found) return [];
    const { component, module, kind } = found;
    const isNorm = norms.has(tensor.name.replace(/\.bias$/, ".weight"));
    const suffix = kind === "weight" ? (isNorm ? "w_norm" : "diff") : isNorm ? "b_norm" : "diff_b";
    return [
      {
        name: `${kohyaModule(component, module, result.hasTwoTextEncoders)}.${suffix}`,
        shape: tensor.shape,
        // Made when it is written: all at once would be as much again as the model.
        get data() {
          return difference(tensor, result);
        },
      },
    ];
  });
  writeTensors(folder, "lycoris/full.safetensors", tensors, { ss_network_module: "lycoris.kohya", ...result.metadata });
  return ["lycoris/full.safetensors"];
}

/** The low-rank part of every matrix's change; of norms and biases, which have none, nothing. */
export function extractLora(result: FullResult, rank: number): LoraResult {
  const tensors = result.trained.flatMap((tensor): ResultTensor[] => {
    const { name, shape } = tensor;
    if (!name.endsWith(".weight") || shape.length < 2 || /embedding\.weight$/.test(name)) return [];
    const [out = 1, inputs = 1, ...kernel] = shape;
    const spatial = kernel.reduce((a, b) => a * b, 1);
    const factors = lowRankFactors(difference(tensor, result), out, inputs * spatial, rank);
    const module = name.slice(0, -".weight".length);
    const isConvolution = kernel.length > 0;
    return [
      { name: `${module}.lora_A.weight`, shape: [rank, inputs, ...kernel], data: padded(factors.down, rank * inputs * spatial) },
      {
        name: `${module}.lora_B.weight`,
        shape: isConvolution ? [out, rank, 1, 1] : [out, rank],
        data: paddedColumns(factors.up, out, factors.rank, rank),
      },
    ];
  });
  return { tensors, rank, alpha: rank, hasTwoTextEncoders: result.hasTwoTextEncoders, metadata: result.metadata };
}

/** Zeros up to the wanted rank: peft knows one rank for all. */
function padded(values: Float32Array, length: number): Float32Array {
  const result = new Float32Array(length);
  result.set(values);
  return result;
}

function paddedColumns(values: Float32Array, rows: number, columns: number, wanted: number): Float32Array {
  if (columns === wanted) return values;
  return Float32Array.from({ length: rows * wanted }, (_, i) =>
    i % wanted < columns ? values[Math.floor(i / wanted) * columns + (i % wanted)]! : 0,
  );
}
