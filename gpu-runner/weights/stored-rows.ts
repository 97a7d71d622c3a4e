/** Reads rows of a matrix that lies in a file, as they are needed. */
import { closeSync, openSync, readSync } from "node:fs";
import type { StoredTensor } from "../graph/ir.ts";
import { ModelError } from "./model-error.ts";
import { bytesOf } from "./safetensors-write.ts";

/** Holds the file open from the first use; `close` it. */
export class StoredRows {
  readonly width: number;
  readonly #tensor: StoredTensor;
  #descriptor: number | null = null;

  constructor(tensor: StoredTensor) {
    this.#tensor = tensor;
    this.width = tensor.shape[1]!;
  }

  /** Rows `first` .. `first + count`, one after another. */
  read(first: number, count = 1): Float32Array<ArrayBuffer> {
    const { file, key, offset } = this.#tensor;
    this.#descriptor ??= openSync(file, "r");
    const rows = new Float32Array(count * this.width);
    const bytes = bytesOf(rows);
    const read = readSync(this.#descriptor, bytes, 0, bytes.length, offset + first * this.width * 4);
    if (read !== bytes.length) throw new ModelError(file, key, `${bytes.length} bytes`, `${read} bytes`);
    return rows;
  }

  close(): void {
    if (this.#descriptor !== null) closeSync(this.#descriptor);
    this.#descriptor = null;
  }
}
