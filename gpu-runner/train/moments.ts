/** How an optimiser keeps one number per trained element. */
import type { CheckpointArrays } from "./checkpoint.ts";

export interface Moments {
  /** Everything that is kept, by name. */
  readonly arrays: CheckpointArrays;
  /** Blocks first .. last - 1; what is changed in it counts only once it is written. */
  read(first: number, last: number): Float32Array;
  write(first: number, values: Float32Array): void;
}

/** Where blocks of at most 256 elements begin, none of which reaches over the end of a tensor; the last entry is the end of all. */
export function blockStarts(lengths: readonly number[]): Uint32Array {
  const starts: number[] = [];
  let end = 0;
  for (const length of lengths) {
    for (let start = 0; start < length; start += blockElements) starts.push(end + start);
    end += length;
  }
  return Uint32Array.from([...starts, end]);
}

const blockElements = 256;

export class Float32Moments implements Moments {
  readonly arrays: CheckpointArrays;
  readonly #values: Float32Array;
  readonly #blocks: Uint32Array;

  constructor(blocks: Uint32Array) {
    this.#blocks = blocks;
    this.#values = new Float32Array(blocks.at(-1)!);
    this.arrays = new Map([["values", this.#values]]);
  }

  read(first: number, last: number): Float32Array {
    return this.#values.subarray(this.#blocks[first]!, this.#blocks[last]!);
  }

  /** What was read is the array itself. */
  write(): void {}
}

/**
 * 8 bits each, relative to the greatest of its block, by the dynamic tree code of Dettmers et al. 2022 as bitsandbytes has it:
 * seven decades, each with twice the fractions of the one below.
 */
export class QuantisedMoments implements Moments {
  readonly arrays: CheckpointArrays;
  readonly #codes: Uint8Array;
  readonly #scales: Float32Array;
  readonly #blocks: Uint32Array;
  readonly #map: DynamicMap;

  constructor(blocks: Uint32Array, isSquare: boolean) {
    this.#blocks = blocks;
    this.#map = isSquare ? maps.squares : maps.means;
    this.#codes = new Uint8Array(blocks.at(-1)!).fill(this.#map.code(0));
    this.#scales = new Float32Array(blocks.length - 1);
    this.arrays = new Map<string, Float32Array | Uint8Array>([
      ["codes", this.#codes],
      ["scales", this.#scales],
    ]);
  }

  read(first: number, last: number): Float32Array {
    const offset = this.#blocks[first]!;
    const values = new Float32Array(this.#blocks[last]! - offset);
    for (let block = first; block < last; block++) {
      const scale = this.#scales[block]!;
      const end = this.#blocks[block + 1]!;
      for (let i = this.#blocks[block]!; i < end; i++) values[i - offset] = scale * this.#map.values[this.#codes[i]!]!;
    }
    return values;
  }

  write(first: number, values: Float32Array): void {
    const offset = this.#blocks[first]!;
    for (let block = first; this.#blocks[block]! < offset + values.length; block++) {
      const [start, end] = [this.#blocks[block]!, this.#blocks[block + 1]!];
      let scale = 0;
      for (let i = start; i < end; i++) scale = Math.max(scale, Math.abs(values[i - offset]!));
      this.#scales[block] = scale;
      for (let i = start; i < end; i++) this.#codes[i] = scale === 0 ? this.#map.code(0) : this.#map.code(values[i - offset]! / scale);
    }
  }
}

const decades = 7;

/** bitsandbytes' `create_dynamic_map(signed, 7, 8)`: 256 numbers up to 1, sorted. */
export function dynamicMap(isSigned: boolean): Float32Array {
  const positive = Array.from({ length: decades }, (_, decade) => {
    const fractions = 2 ** (isSigned ? decade : decade + 1);
    return Array.from({ length: fractions }, (_, i) => 10 ** (decade + 1 - decades) * (0.1 + (0.9 * (i + 0.5)) / fractions));
  }).flat();
  const values = [...positive, ...(isSigned ? positive.map(value => -value) : []), 0, 1];
  return Float32Array.from(values).sort();
}

/** Numbers in -1 .. 1 by the nearest of the map's. */
class DynamicMap {
  readonly values: Float32Array;
  readonly #middles: Float32Array;
  /** The least code of the numbers that share sign, exponent and six bits: from there it is at most a few up. */
  readonly #least: Uint8Array;
  readonly #number = new Float32Array(1);
  readonly #bits = new Uint32Array(this.#number.buffer);

  constructor(values: Float32Array) {
    this.values = values;
    this.#middles = values.slice(0, -1).map((value, i) => (value + values[i + 1]!) / 2);
    this.#least = Uint8Array.from({ length: 2 ** 15 }, (_, high) => {
      const [one, other] = [0, 2 ** 17 - 1].map(low => this.#numberOf(high * 2 ** 17 + low));
      const code = this.#middles.findIndex(middle => !(Math.min(one!, other!) > middle));
      return code < 0 ? values.length - 1 : code;
    });
  }

  code(value: number): number {
    this.#number[0] = value;
    let code = this.#least[this.#bits[0]! >>> 17]!;
    while (this.#number[0] > this.#middles[code]!) code++;
    return code;
  }

  #numberOf(bits: number): number {
    this.#bits[0] = bits;
    return this.#number[0]!;
  }
}

const maps = { means: new DynamicMap(dynamicMap(true)), squares: new DynamicMap(dynamicMap(false)) };
