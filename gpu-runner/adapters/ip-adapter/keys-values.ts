/** Keys and values of image tokens for all of a UNet's layers: computed once for the tokens of a picture, not once a step. */
import type { TensorF32 } from "../../components.ts";
import { buildIpKeysValues } from "../../models/ip-attention.ts";
import { Variants } from "../../serving/variants.ts";
import { createSession, type SessionCache, type SessionOptions } from "../../session.ts";
import type { UnetConfig } from "../../weights/configs.ts";
import type { IpAdapterLayers } from "../adapter.ts";

export type KeysValues = Readonly<Record<string, TensorF32>>;

/** Adapters of which the sessions stay open. */
const kept = 4;

export class IpKeysValues {
  readonly #config: UnetConfig;
  readonly #options: SessionOptions;
  readonly #variants: Variants;
  /** By the tokens' array, which the passes of one picture share. */
  readonly #known = new WeakMap<Float32Array, Map<string, KeysValues>>();

  constructor(config: UnetConfig, sessions: SessionCache, options: SessionOptions) {
    this.#config = config;
    this.#options = options;
    this.#variants = new Variants(sessions, kept);
  }

  /** What `buildIpKeysValues` makes of tokens [B, n, C]. */
  async of({ hash, layers }: IpAdapterLayers, tokens: TensorF32): Promise<KeysValues> {
    const known = this.#known.get(tokens.data) ?? new Map<string, KeysValues>();
    this.#known.set(tokens.data, known);
    const found = known.get(hash) ?? (await this.#compute(hash, layers, tokens));
    known.set(hash, found);
    return found;
  }

  release(): Promise<void> {
    return this.#variants.release();
  }

  #compute(hash: string, layers: IpAdapterLayers["layers"], tokens: TensorF32): Promise<KeysValues> {
    const { provider, threads } = this.#options;
    const key = JSON.stringify(["ip-adapter-keys-values", hash, provider, threads ?? "all"]);
    return this.#variants.use(
      key,
      { graph: () => buildIpKeysValues(layers, this.#config), session: graph => createSession(graph, this.#options) },
      ({ session }) => session.run({ tokens }),
    );
  }
}
