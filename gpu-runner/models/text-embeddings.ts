/** CLIP's embedding of tokens: rows of the token table plus rows of the position table, read from the file as they are needed. */
import type { TensorF32 } from "../components.ts";
import type { StoredTensor } from "../graph/ir.ts";
import type { TextEncoderConfig } from "../weights/configs.ts";
import { SafetensorsFile, withSafetensors } from "../weights/safetensors.ts";
import type { Weights } from "../weights/weights.ts";

/** Holds the weight file open from the first use; `close` it. The table of a real model has 150 MB, of which a prompt needs a few rows. */
export class TextEmbeddings {
  readonly #path: string;
  #file: SafetensorsFile | null = null;
  readonly #config: TextEncoderConfig;
  readonly #tokens: StoredTensor;
  readonly #positions: Float32Array;

  constructor(config: TextEncoderConfig, weights: Weights) {
    this.#config = config;
    this.#tokens = weights.take("embeddings.token_embedding.weight", [config.vocabularySize, config.width]);
    const positions = weights.take("embeddings.position_embedding.weight", [config.maxLength, config.width]);
    this.#path = weights.file;
    this.#positions = withSafetensors(weights.file, file => file.readFloat32(positions.key));
  }

  /** Ids, one equally long list per prompt, to [B, L, C]. Throws RangeError for an id or a length that the tables lack. */
  embed(ids: readonly (readonly number[])[]): TensorF32 {
    const { width, vocabularySize, maxLength } = this.#config;
    const length = ids[0]?.length ?? 0;
    if (length < 1 || length > maxLength || ids.some(row => row.length !== length))
      throw new RangeError(`token ids: expected lists of one length from 1 to ${maxLength}, got lengths [${ids.map(row => row.length)}]`);
    this.#file ??= SafetensorsFile.open(this.#path);
    const file = this.#file;
    const data = new Float32Array(ids.length * length * width);
    ids.flat().forEach((id, row) => {
      if (!Number.isInteger(id) || id < 0 || id >= vocabularySize)
        throw new RangeError(`token id: expected 0 to ${vocabularySize - 1}, got ${id}`);
      const token = file.readFloat32(this.#tokens.key, id * width, width);
      const position = (row % length) * width;
      for (let i = 0; i < width; i++) data[row * width + i] = token[i]! + this.#positions[position + i]!;
    });
    return { data, shape: [ids.length, length, width] };
  }

  close(): void {
    this.#file?.close();
    this.#file = null;
  }
}
