/** Opens a T2I-Adapter, whichever way it was published, and runs it: once a picture, since it sees the control map alone. */
import type { TensorF32, UnetBase } from "../../components.ts";
import { GraphError } from "../../graph/ir.ts";
import { buildT2iAdapter, type T2iAdapterConfig } from "../../models/t2i-adapter.ts";
import { createSession, type GraphSession } from "../../session.ts";
import { ModelError } from "../../weights/model-error.ts";
import { findAdapterFiles } from "../adapter-files.ts";
import { AdapterWeights } from "../adapter-weights.ts";
import type { OpenAdapterOptions } from "../open-options.ts";
import { t2iAdapterClasses, t2iAdapterConfig, t2iAdapterConfigOfKeys } from "./config.ts";
import { type T2iAdapterLayout, t2iAdapterKeys } from "./keys.ts";

/** A T2I-Adapter held by a session; `release` it once. */
export interface T2iAdapter {
  readonly kind: "t2i-adapter";
  readonly layout: T2iAdapterLayout;
  readonly config: T2iAdapterConfig;
  /** From the control map in 0..1, [B, 3, H, W] of the picture's size, to unscaled features, one a level. Throws GraphError. */
  features(cond: TensorF32): Promise<TensorF32[]>;
  release(): Promise<void>;
}

/** A diffusers folder, or a single file of diffusers' or the original layout. Throws ModelError naming key, expected and got. */
export async function openT2iAdapter(path: string, base: UnetBase, options: OpenAdapterOptions): Promise<T2iAdapter> {
  const files = findAdapterFiles(path, t2iAdapterClasses);
  const found = options.config === undefined ? files.config : { file: path, json: options.config };
  const weights = await AdapterWeights.open(path, files.weights, options);
  const given = found ? t2iAdapterConfig(found.file, found.json) : null;
  const keys = t2iAdapterKeys(weights, given);
  const config = given ?? t2iAdapterConfigOfKeys(weights, keys);
  requireBase(path, config, base);
  const graph = weights.build(keys.keyFor, source => buildT2iAdapter(config, source));
  return new OpenT2iAdapter(keys.layout, config, await createSession(graph, options));
}

/** A feature has the channels of the level that it is added to; one more than the levels belongs to the middle block. */
function requireBase(path: string, { type, channels }: T2iAdapterConfig, { config }: UnetBase): void {
  const own = type === "light_adapter" ? [...channels, channels.at(-1)!] : channels;
  const levels = config.levels.map(level => level.channels);
  const base = [...levels, levels.at(-1)!].slice(0, Math.max(own.length, levels.length));
  if (String(own) !== String(base.slice(0, own.length)) || own.length > base.length)
    throw new ModelError(path, "channels", `[${base}] as the base's levels have`, `[${own}]`);
}

class OpenT2iAdapter implements T2iAdapter {
  readonly kind = "t2i-adapter";
  readonly layout: T2iAdapterLayout;
  readonly config: T2iAdapterConfig;
  readonly #session: GraphSession;

  constructor(layout: T2iAdapterLayout, config: T2iAdapterConfig, session: GraphSession) {
    this.layout = layout;
    this.config = config;
    this.#session = session;
  }

  async features(cond: TensorF32): Promise<TensorF32[]> {
    const { inChannels, downscale } = this.config;
    const [, channels, height, width] = cond.shape as [number, number, number, number];
    if (channels !== 3 && channels !== inChannels) throw new GraphError("cond", "feed", `${inChannels} or 3 channels`, String(channels));
    if (height % downscale !== 0 || width % downscale !== 0)
      throw new GraphError("cond", "feed", `height and width that ${downscale} divides`, `${height} x ${width}`);
    const map = channels === inChannels ? cond : grey(cond);
    const out = await this.#session.run({ cond: unshuffle(map, downscale) });
    return Object.keys(out).map((_, i) => out[`feature.${i}`]!);
  }

  release(): Promise<void> {
    return this.#session.release();
  }
}

/** Squares of n x n pixels become n * n channels of one pixel (torch's pixel_unshuffle): [B, C, H, W] to [B, C * n * n, H / n, W / n]. */
export function unshuffle({ data, shape }: TensorF32, n: number): TensorF32 {
  const [batch, channels, height, width] = shape as [number, number, number, number];
  const [rows, columns] = [height / n, width / n];
  const out = new Float32Array(data.length);
  let to = 0;
  for (let plane = 0; plane < batch * channels; plane++)
    for (let square = 0; square < n * n; square++)
      for (let y = 0; y < rows; y++)
        for (let x = 0; x < columns; x++)
          out[to++] = data[(plane * height + y * n + Math.floor(square / n)) * width + x * n + (square % n)]!;
  return { data: out, shape: [batch, channels * n * n, rows, columns] };
}

/** Rec. 601 luma, as Pillow's mode "L", of an adapter that reads grey maps. */
function grey({ data, shape }: TensorF32): TensorF32 {
  const [batch, , height, width] = shape as [number, number, number, number];
  const size = height * width;
  const out = new Float32Array(batch * size);
  for (let b = 0; b < batch; b++)
    for (let i = 0; i < size; i++) {
      const at = b * 3 * size + i;
      out[b * size + i] = 0.299 * data[at]! + 0.587 * data[at + size]! + 0.114 * data[at + 2 * size]!;
    }
  return { data: out, shape: [batch, 1, height, width] };
}
