/** Keys and values of image tokens for all of a UNet's layers: computed anew only where the tokens are others than lately. */
import type { TensorF32 } from "../../components.ts";
import { buildIpKeysValues } from "../../models/ip-attention.ts";
import { Variants } from "../../serving/variants.ts";
import { createSession, type SessionCache, type SessionOptions } from "../../session.ts";
import type { UnetConfig } from "../../weights/configs.ts";
import type { IpAdapterLayers } from "../adapter.ts";

export type KeysValues = Readonly<Record<string, TensorF32>>;

/** Adapters of which the sessions stay open. */
const keptSessions = 4;
/** Results that are kept: of two adapters in the two halves of guidance. */
const keptResults = 4;

interface Known {
  hash: string;
  tokens: TensorF32;
  keysValues: KeysValues;
}

export class IpKeysValues {
  readonly #config: UnetConfig;
  readonly #options: SessionOptions;
  readonly #variants: Variants;
  /** The latest last. */
  #known: Known[] = [];

  constructor(config: UnetConfig, sessions: SessionCache, options: SessionOptions) {
    this.#config = config;
    this.#options = options;
    this.#variants = new Variants(sessions, keptSessions);
  }

  /** What `buildIpKeysValues` makes of tokens [B, n, C]. */
  async of({ hash, layers }: IpAdapterLayers, tokens: TensorF32): Promise<KeysValues> {
    // Equal by content, since each step puts its batch together anew.
    const found = this.#known.find(known => known.hash === hash && equal(known.tokens, tokens));
    const latest = found ?? { hash, tokens, keysValues: await this.#compute(hash, layers, tokens) };
    this.#known = [...this.#known.filter(known => known !== found), latest].slice(-keptResults);
    return latest.keysValues;
  }

  release(): Promise<void> {
    this.#known = [];
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

function equal(a: TensorF32, b: TensorF32): boolean {
  return String(a.shape) === String(b.shape) && a.data.every((value, i) => value === b.data[i]);
}
