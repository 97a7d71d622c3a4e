import type { SessionOptions } from "../session.ts";
import type { AdapterWeightOptions } from "./adapter-weights.ts";

/** How an adapter that is a net of its own is opened. */
export interface OpenAdapterOptions extends SessionOptions, AdapterWeightOptions {
  /** The config of a file that has none beside it, as parsed JSON. */
  config?: unknown;
}
