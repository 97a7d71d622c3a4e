/** How an optimiser keeps one number per trained element. */
import type { CheckpointArrays } from "./checkpoint.ts";

export interface Moments {
  /** Everything that is kept, by name. */
  readonly arrays: CheckpointArrays;
  /** Elements start .. end - 1; what is changed in it counts only once it is written. */
  read(start: number, end: number): Float32Array;
  write(start: number, values: Float32Array): void;
}

export class Float32Moments implements Moments {
  readonly arrays: CheckpointArrays;
  readonly #values: Float32Array;

  constructor(length: number) {
    this.#values = new Float32Array(length);
    this.arrays = new Map([["values", this.#values]]);
  }

  read(start: number, end: number): Float32Array {
    return this.#values.subarray(start, end);
  }

  /** What was read is the array itself. */
  write(): void {}
}

const blockElements = 256;

/**
 * 8 bits each, relative to the greatest of its block of 256: means linearly, squares by their fourth root,
 * which keeps small ones apart from zero.
 */
export class QuantisedMoments implements Moments {
  readonly arrays: CheckpointArrays;
  readonly #codes: Uint8Array;
  readonly #scales: Float32Array;
  readonly #length: number;
  readonly #isSquare: boolean;

  constructor(length: number, isSquare: boolean) {
    this.#codes = new Uint8Array(length);
    this.#scales = new Float32Array(Math.ceil(length / blockElements));
    this.#length = length;
    this.#isSquare = isSquare;
    this.arrays = new Map<string, Float32Array | Uint8Array>([
      ["codes", this.#codes],
      ["scales", this.#scales],
    ]);
  }

  read(start: number, end: number): Float32Array {
    return Float32Array.from({ length: end - start }, (_, i) => this.#value(start + i));
  }

  write(start: number, values: Float32Array): void {
    const end = start + values.length;
    for (let block = Math.floor(start / blockElements); block * blockElements < end; block++) {
      const first = block * blockElements;
      const last = Math.min(this.#length, first + blockElements);
      // Of a block that is written in part the rest is coded anew by the new scale.
      const all = Float32Array.from({ length: last - first }, (_, i) => {
        const at = first + i;
        return at >= start && at < end ? values[at - start]! : this.#value(at);
      });
      const scale = all.reduce((greatest, value) => Math.max(greatest, Math.abs(value)), 0);
      this.#scales[block] = scale;
      all.forEach((value, i) => {
        this.#codes[first + i] =
          scale === 0 ? 0 : this.#isSquare ? Math.round(255 * (value / scale) ** 0.25) : Math.round(127 * (value / scale));
      });
    }
  }

  #value(at: number): number {
    const scale = this.#scales[Math.floor(at / blockElements)]!;
    const code = this.#codes[at]!;
    return this.#isSquare ? scale * (code / 255) ** 4 : (scale * ((code << 24) >> 24)) / 127;
  }
}
