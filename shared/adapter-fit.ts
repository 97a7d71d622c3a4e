/** Whether an adapter can work on a model, by the widths that both state. */
import type { AdapterManifest } from "./adapter.ts";
import type { ModelManifest } from "./model.ts";

type Adapter = Pick<AdapterManifest, "kind" | "families" | "cross_attention_dim" | "text_widths">;
type Base = Pick<ModelManifest, "family" | "cross_attention_dim" | "text_widths">;

/** What a width is called by those who know models by name. */
const names: Readonly<Record<number, string>> = { 768: "SD 1", 1024: "SD 2", 2048: "SDXL", 1280: "SDXL's refiner" };

/** Null where it fits, as far as the headers tell; else a sentence with both widths. */
export function adapterFits(adapter: Adapter, base: Base): string | null {
  const { cross_attention_dim: width } = adapter;
  if (width !== null && width !== base.cross_attention_dim)
    return `expected an adapter for text states of width ${named(base.cross_attention_dim)}, got one for ${named(width)}`;
  return textFits(adapter, base) ?? familyFits(adapter, base);
}

function named(width: number): string {
  return names[width] ? `${width} (${names[width]})` : String(width);
}

/** An SDXL refiner's one encoder is the second of SDXL: what an adapter has for the first is left out there. */
function textFits({ kind, text_widths: wanted }: Adapter, { family, text_widths: own }: Base): string | null {
  const encoders = family === "sdxl-refiner" ? [null, ...own] : own;
  const message = (got: string) => `expected an adapter for text encoders of width ${own.join(" and ")}, got one for ${got}`;
  // One row of widths may be of either encoder: a textual inversion's file does not always say whose it is.
  const [only] = wanted;
  if (kind === "textual-inversion" && wanted.length === 1 && only != null) return own.includes(only) ? null : message(String(only));
  const unfit = wanted.some((width, i) => width !== null && encoders[i] !== null && width !== encoders[i]);
  if (unfit) return message(wanted.map(width => width ?? "none").join(" and "));
  const reaches = wanted.length === 0 || adapterReaches(wanted, encoders);
  return reaches || kind !== "textual-inversion" ? null : message(wanted.map(width => width ?? "none").join(" and "));
}

function adapterReaches(wanted: readonly (number | null)[], encoders: readonly (number | null)[]): boolean {
  return wanted.some((width, i) => width !== null && width === encoders[i]);
}

function familyFits({ families }: Adapter, { family }: Base): string | null {
  if (families.length === 0 || families.includes(family)) return null;
  return `expected an adapter for ${family}, got one for ${families.join(" or ")}`;
}
