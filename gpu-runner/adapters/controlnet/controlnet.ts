/** Opens a ControlNet, whichever way it was published, and runs it. */
import type { PredictArgs, TensorF32, UnetBase } from "../../components.ts";
import { GraphError } from "../../graph/ir.ts";
import { buildControlNet, type ControlNetConfig, controlMapFactor } from "../../models/controlnet.ts";
import { timestepFeatures } from "../../models/unet.ts";
import { conditionFeeds } from "../../models/unet-feeds.ts";
import { createSession, type GraphSession } from "../../session.ts";
import { ModelError } from "../../weights/model-error.ts";
import { findAdapterFiles } from "../adapter-files.ts";
import { AdapterWeights } from "../adapter-weights.ts";
import type { OpenAdapterOptions } from "../open-options.ts";
import { readStored } from "../stored-tensor.ts";
import { controlNetClasses, controlNetConfig, controlNetConfigOfBase } from "./config.ts";
import { addBase } from "./difference.ts";
import { type ControlNetLayout, controlNetKeys } from "./keys.ts";
import type { ControlResiduals } from "./residuals.ts";

export interface ControlNetArgs extends Pick<PredictArgs, "sample" | "timesteps" | "encoderHiddenStates" | "added"> {
  /** The control map in 0..1, [B, 3, H, W] of the picture's size. */
  cond: TensorF32;
  /** Which control of a union the map is; null for another net. */
  control: number | null;
}

/** A ControlNet held by a session; `release` it once. */
export interface ControlNet {
  readonly kind: "controlnet";
  readonly layout: ControlNetLayout;
  /** How many controls a union knows; null: the net has but one. */
  readonly controls: number | null;
  /** Whether its config asks for global pooling (see `ResidualScaling`). */
  readonly globalPool: boolean;
  /** Unscaled residuals (see `scaleResiduals`). Throws GraphError for a feed that does not fit. */
  run(args: ControlNetArgs): Promise<ControlResiduals>;
  release(): Promise<void>;
}

/**
 * A diffusers folder, or a single file of diffusers' or the original layout. What a single file does not tell (head counts) comes from
 * `options.config`, a `config.json` beside it, or the base. Throws ModelError naming key, expected and got.
 */
export async function openControlNet(path: string, base: UnetBase, options: OpenAdapterOptions): Promise<ControlNet> {
  const files = findAdapterFiles(path, controlNetClasses);
  const config = options.config === undefined ? files.config : { file: path, json: options.config };
  const stored = await AdapterWeights.open(path, files.weights, options);
  const given = config ? controlNetConfig(config.file, config.json) : null;
  const keys = controlNetKeys(path, stored.keys(), (given?.unet ?? base.config).levels);
  const weights = addBase(stored, files.weights, keys, base, options.cacheDir);
  const geometry = given ?? controlNetConfigOfBase(base.config, weights, keys);
  requireBase(path, geometry, base);
  const graph = weights.build(
    keys.keyFor,
    source => buildControlNet(geometry, source),
    key => key === keys.keyFor("task_embedding") || key === "difference",
  );
  const tasks = geometry.union ? readStored(weights.tensor(keys.keyFor("task_embedding"))) : null;
  return new OpenControlNet(keys.layout, geometry, tasks, await createSession(graph, options));
}

/** The widths that tie a ControlNet to its base. */
function requireBase(path: string, { unet }: ControlNetConfig, { config }: UnetBase): void {
  const fail = (key: string, expected: string, got: string): never => {
    throw new ModelError(path, key, `${expected} as the base has`, got);
  };
  if (unet.crossAttentionDim !== config.crossAttentionDim)
    fail("cross_attention_dim", String(config.crossAttentionDim), String(unet.crossAttentionDim));
  const [own, base] = [unet, config].map(({ levels }) => String(levels.map(({ channels, layers }) => [channels, layers])));
  if (own !== base) fail("channels and layers of the levels", `${base}`, `${own}`);
  if (unet.added?.width !== config.added?.width)
    fail("width of the added conditions", String(config.added?.width ?? "none"), String(unet.added?.width ?? "none"));
}

class OpenControlNet implements ControlNet {
  readonly kind = "controlnet";
  readonly layout: ControlNetLayout;
  readonly globalPool: boolean;
  readonly controls: number | null;
  readonly #config: ControlNetConfig;
  /** Of a union, one embedding per control. */
  readonly #tasks: TensorF32 | null;
  readonly #session: GraphSession;

  constructor(layout: ControlNetLayout, config: ControlNetConfig, tasks: TensorF32 | null, session: GraphSession) {
    this.layout = layout;
    this.globalPool = config.globalPool;
    this.controls = config.union?.controls ?? null;
    this.#config = config;
    this.#tasks = tasks;
    this.#session = session;
  }

  async run(args: ControlNetArgs): Promise<ControlResiduals> {
    const { unet, channelOrder } = this.#config;
    requireControlMap(args, this.#config);
    const out = await this.#session.run({
      ...conditionFeeds(unet, args),
      cond: channelOrder === "bgr" ? withReversedChannels(args.cond) : args.cond,
      ...this.#unionFeeds(args),
    });
    const down = Object.keys(out).filter(name => name.startsWith("down."));
    return { down: down.map((_, i) => out[`down.${i}`]!), mid: out.mid! };
  }

  release(): Promise<void> {
    return this.#session.release();
  }

  #unionFeeds({ control, sample }: ControlNetArgs): Record<string, TensorF32> {
    const { union, unet } = this.#config;
    if (!union || !this.#tasks) {
      if (control !== null) throw new GraphError("control", "feed", "none, since this ControlNet is no union", String(control));
      return {};
    }
    if (control === null || !Number.isInteger(control) || control < 0 || control >= union.controls)
      throw new GraphError("control", "feed", `0 to ${union.controls - 1}, which control of the union the map is`, String(control));
    const batch = sample.shape[0]!;
    const { width, controls, switchWidth } = union;
    const task = this.#tasks.data.subarray(control * width, (control + 1) * width);
    const switches = timestepFeatures(
      Array.from({ length: batch * controls }, (_, i) => (i % controls === control ? 1 : 0)),
      switchWidth,
      { flipSinToCos: unet.flipSinToCos, shift: unet.frequencyShift },
    );
    return { task: repeated(task, batch), control_switches: { data: switches, shape: [batch, controls * switchWidth] } };
  }
}

function requireControlMap({ sample, cond }: ControlNetArgs, config: ControlNetConfig): void {
  const [batch, , height, width] = sample.shape as [number, number, number, number];
  const factor = controlMapFactor(config);
  const expected = [batch, config.conditioningChannels, height * factor, width * factor];
  if (String(cond.shape) !== String(expected)) throw new GraphError("cond", "feed", `a control map [${expected}]`, `[${cond.shape}]`);
}

function withReversedChannels({ data, shape }: TensorF32): TensorF32 {
  const [batch, channels] = shape as [number, number];
  const size = data.length / (batch * channels);
  const reversed = new Float32Array(data.length);
  for (let row = 0; row < batch * channels; row++) {
    const channel = row % channels;
    const from = row - channel + (channels - 1 - channel);
    reversed.set(data.subarray(from * size, (from + 1) * size), row * size);
  }
  return { data: reversed, shape };
}

function repeated(row: Float32Array, count: number): TensorF32 {
  const data = new Float32Array(row.length * count);
  for (let i = 0; i < count; i++) data.set(row, i * row.length);
  return { data, shape: [count, row.length] };
}
