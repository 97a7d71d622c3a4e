/**
 * The tensors that a training moves, side by side in one flat buffer: sessions read them in place as graph inputs, the optimiser
 * sees one vector (docs/training.md says why).
 */
import type { TensorF32 } from "../components.ts";

export interface TrainedTensor {
  /** As result files name it. */
  name: string;
  shape: readonly number[];
  /** Which learning rate it has. */
  group: "main" | "text";
}

export class TrainedTensors {
  readonly list: readonly TrainedTensor[];
  readonly values: Float32Array;
  readonly gradients: Float32Array;
  readonly #offsets = new Map<string, { offset: number; shape: readonly number[] }>();

  constructor(list: readonly TrainedTensor[]) {
    this.list = list;
    let length = 0;
    for (const { name, shape } of list) {
      this.#offsets.set(name, { offset: length, shape });
      length += elements(shape);
    }
    this.values = new Float32Array(length);
    this.gradients = new Float32Array(length);
  }

  /** A tensor's values, a view of the flat buffer. */
  value(name: string): TensorF32 {
    return this.#view(this.values, name);
  }

  /** A tensor's gradient, a view of the flat buffer. */
  gradient(name: string): TensorF32 {
    return this.#view(this.gradients, name);
  }

  /** Where a tensor begins in the flat buffers, in elements. */
  offset(name: string): number {
    return this.#place(name).offset;
  }

  #view(buffer: Float32Array, name: string): TensorF32 {
    const { offset, shape } = this.#place(name);
    return { data: buffer.subarray(offset, offset + elements(shape)), shape };
  }

  #place(name: string): { offset: number; shape: readonly number[] } {
    const place = this.#offsets.get(name);
    if (!place) throw new Error(`${name}: expected one of the ${this.#offsets.size} trained tensors`);
    return place;
  }
}

function elements(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}
