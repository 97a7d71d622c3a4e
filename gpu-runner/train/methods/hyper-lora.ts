/**
 * A net that predicts the LoRA of a concept for every attention projection: HyperDreamBooth's fixed orthonormal outer factors (Ruiz et al.
 * 2023), conditioned as Text-to-LoRA (Charakorn et al. 2025), on a table's code or on a picture. Formulas and names:
 * test/goldens/training/HYPER_LORA.md.
 */
import type { TensorF32, TrainableModel } from "../../components.ts";
import { lowRankInputs } from "../../models/layers.ts";
import type { ResultTensor } from "../export/result.ts";
import type { TrainingStep } from "../step.ts";
import type { TrainingOptions } from "../training-session.ts";
import { AdapterStep } from "./adapter-step.ts";
import type { HyperLoraShape } from "./hyper-lora/net.ts";
import { HyperLoraPart } from "./hyper-lora/part.ts";
import { TunedPart } from "./hyper-lora/tuned-part.ts";

export class HyperLoraStep extends AdapterStep {
  readonly #part: HyperLoraPart;

  constructor(model: TrainableModel, part: HyperLoraPart, options: TrainingOptions) {
    super(model, part, options);
    this.#part = part;
  }

  /**
   * Of a file of these names, with its fixed factors.
   * @param concepts the row of the file's table for each concept of ours; undefined: a concept that the file does not know, whose code
   * stays as it is. Absent: the same concepts
   * @throws RangeError for a tensor that is missing or misshapen
   */
  startFrom(values: ReadonlyMap<string, TensorF32>, concepts?: readonly (number | undefined)[]): void {
    const { tensors, fixed, shape } = this.#part;
    const take = (name: string, length: number): Float32Array => {
      const found = values.get(name);
      if (found?.data.length !== length)
        throw new RangeError(`${name}: expected ${length} elements to start from, got [${found?.shape ?? "none"}]`);
      return found.data;
    };
    for (const { name } of tensors.list) {
      const { data } = tensors.value(name);
      if (name !== "codes" || !concepts) data.set(take(name, data.length));
    }
    concepts?.forEach((row, concept) => {
      if (row === undefined) return;
      const own = values.get("codes")!.data.subarray(row * shape.codeWidth, (row + 1) * shape.codeWidth);
      tensors.value("codes").data.set(own, concept * shape.codeWidth);
    });
    for (const [name, { data, shape }] of fixed) {
      const own = take(name, data.length);
      data.set(name.startsWith("q.") ? transposed(own, shape[1]!, shape[0]!) : own);
    }
  }

  /** The factors that are not trained, as a file has them: with the trained tensors they are the whole net. */
  get constants(): readonly ResultTensor[] {
    return [...this.#part.fixed].map(([name, { data, shape }]) => {
      const [width, inner] = shape as [number, number];
      return name.startsWith("q.") ? { name, data: transposed(data, width, inner), shape: [inner, width] } : { name, data, shape };
    });
  }

  /** Makes a concept's code the mean of those of these pictures. @param latents [C, h, w] of each @throws RangeError without pictures or picture branch */
  async setCode(concept: number, latents: readonly TensorF32[]): Promise<void> {
    const { pictures, tensors, shape } = this.#part;
    if (!pictures) throw new RangeError("start_from: expected a net with the picture branch for a concept that it was not trained on");
    if (latents.length === 0) throw new RangeError(`concept ${concept}: expected at least one picture to predict from, got none`);
    const code = new Float32Array(shape.codeWidth);
    for (const { data, shape: dims } of latents) {
      const { data: own } = await pictures.codes(tensors, { data, shape: [1, ...dims] });
      own.forEach((value, i) => {
        code[i]! += value / latents.length;
      });
    }
    tensors.value("codes").data.set(code, concept * shape.codeWidth);
  }

  /** The LoRA of each concept, as diffusers names its tensors: predicted, or what was trained on from there. */
  async predicted(): Promise<readonly (readonly ResultTensor[])[]> {
    const { shape, projections } = this.#part;
    const concepts = Array.from({ length: shape.concepts }, (_, i) => i);
    const pairs = await this.#part.forward({ concepts, references: null });
    return concepts.map(concept =>
      projections.flatMap(({ name }) => {
        const { down, up } = lowRankInputs(`${name}.weight`);
        return [
          { name: `unet.${name}.lora_A.weight`, ...item(pairs[down]!, concept) },
          { name: `unet.${name}.lora_B.weight`, ...item(pairs[up]!, concept) },
        ];
      }),
    );
  }

  /**
   * A step over a concept's pairs alone, which begin as predicted and from now on stand for the prediction.
   * It computes in this step's sessions: release it first.
   */
  async tune(concept: number): Promise<TrainingStep> {
    const { features, projections, tuned } = this.#part;
    const pairs = await this.#part.forward({ concepts: [concept], references: null });
    const start = Object.fromEntries(Object.entries(pairs).map(([input, value]) => [input, item(value, 0)]));
    const part = new TunedPart(features, projections, start);
    tuned.set(concept, part.pairs);
    return this.withPart(part);
  }
}

function item({ data, shape }: TensorF32, index: number): TensorF32 {
  const size = data.length / shape[0]!;
  return { data: data.slice(index * size, (index + 1) * size), shape: shape.slice(1) };
}

/** [rows, columns] to [columns, rows]. */
function transposed(values: Float32Array, rows: number, columns: number): Float32Array {
  return values.map((_, i) => values[(i % rows) * columns + Math.floor(i / rows)]!);
}

export function openHyperLoraStep(model: TrainableModel, shape: HyperLoraShape, seed: number, options: TrainingOptions): HyperLoraStep {
  return new HyperLoraStep(model, new HyperLoraPart(model, shape, seed, options), options);
}
