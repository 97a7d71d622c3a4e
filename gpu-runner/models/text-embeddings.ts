/** CLIP's embedding of tokens: rows of the token table plus rows of the position table, read from the file as they are needed. */
import type { TensorF32 } from "../components.ts";
import type { TextEncoderConfig } from "../weights/configs.ts";
import { StoredRows } from "../weights/stored-rows.ts";
import type { WeightSource } from "../weights/weights.ts";

/** The tables by what they have a row of, as the base's weights name them. */
export const embeddingTables = {
  tokens: "embeddings.token_embedding.weight",
  positions: "embeddings.position_embedding.weight",
} as const;
export type EmbeddingTableName = keyof typeof embeddingTables;

/** `close` it. The table of a real model has 150 MB, of which a prompt needs a few rows. */
export class TextEmbeddings {
  readonly #config: TextEncoderConfig;
  readonly #tokens: StoredRows;
  readonly #positions: StoredRows;

  constructor(config: TextEncoderConfig, weights: WeightSource) {
    this.#config = config;
    this.#tokens = new StoredRows(weights.take(embeddingTables.tokens, [config.vocabularySize, config.width]));
    this.#positions = new StoredRows(weights.take(embeddingTables.positions, [config.maxLength, config.width]));
  }

  get width(): number {
    return this.#config.width;
  }

  /**
   * Ids, one equally long list per prompt, to [B, L, C]. Ids from the vocabulary's size on are rows of `extra`, [n, C].
   * @param changed whole tables that stand for the file's
   * @throws RangeError for an id or a length that the tables lack
   */
  embed(
    ids: readonly (readonly number[])[],
    extra?: TensorF32,
    changed: Readonly<Partial<Record<EmbeddingTableName, Float32Array>>> = {},
  ): TensorF32 {
    const { width, maxLength, vocabularySize } = this.#config;
    const length = ids[0]?.length ?? 0;
    if (length < 1 || length > maxLength || ids.some(row => row.length !== length))
      throw new RangeError(`token ids: expected lists of one length from 1 to ${maxLength}, got lengths [${ids.map(row => row.length)}]`);
    if (extra && extra.shape[1] !== width) throw new RangeError(`extra embeddings: expected rows of ${width}, got [${extra.shape}]`);
    const positions = changed.positions ?? this.#positions.read(0, length);
    const data = new Float32Array(ids.length * length * width);
    ids.flat().forEach((id, row) => {
      const token = changed.tokens && id < vocabularySize ? changed.tokens.subarray(id * width, (id + 1) * width) : this.#row(id, extra);
      const position = (row % length) * width;
      for (let i = 0; i < width; i++) data[row * width + i] = token[i]! + positions[position + i]!;
    });
    return { data, shape: [ids.length, length, width] };
  }

  /** A whole table, row by row. */
  table(name: EmbeddingTableName): Float32Array {
    const { vocabularySize, maxLength } = this.#config;
    return name === "tokens" ? this.#tokens.read(0, vocabularySize) : this.#positions.read(0, maxLength);
  }

  /** Rows of the token table alone, [n, C]. Throws RangeError for an id that it lacks. */
  tokenRows(ids: readonly number[]): TensorF32 {
    const { width } = this.#config;
    const data = new Float32Array(ids.length * width);
    ids.forEach((id, row) => {
      data.set(this.#row(id, undefined), row * width);
    });
    return { data, shape: [ids.length, width] };
  }

  #row(id: number, extra: TensorF32 | undefined): Float32Array {
    const { width, vocabularySize } = this.#config;
    const count = vocabularySize + (extra?.shape[0] ?? 0);
    if (!Number.isInteger(id) || id < 0 || id >= count) throw new RangeError(`token id: expected 0 to ${count - 1}, got ${id}`);
    if (id < vocabularySize) return this.#tokens.read(id);
    const start = (id - vocabularySize) * width;
    return extra!.data.subarray(start, start + width);
  }

  close(): void {
    this.#tokens.close();
    this.#positions.close();
  }
}
