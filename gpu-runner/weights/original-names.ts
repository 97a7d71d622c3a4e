/** The keys of single files by the names that the graphs use: `original-keys.ts` the other way round, for writing. */
import type { ModelFamily } from "../../shared/model.ts";
import type { ComponentName } from "./key-layouts.ts";
import type { TextEncoderPart } from "./model-source.ts";
import { type OriginalParts, openClipInner, openClipOuter, originalKeys, unetPrefix, vaePrefix, vaeTable } from "./original-keys.ts";
import { originalModule, originalUnetBlocks } from "./original-unet.ts";

/** Where a tensor stands in a single file. */
export interface OriginalKey {
  key: string;
  /** One of equal pieces along the first axis. */
  piece?: { index: number; of: number };
  /** Stored as [in, out]. */
  transposed?: boolean;
}

type TextPlace = Pick<OriginalParts["textEncoders"][number], "component" | "prefix" | "kind">;

const openClip: TextPlace = { component: "textEncoder2", prefix: "conditioner.embedders.1.model.", kind: "openclip" };
const textPlaces = {
  sd1: [{ component: "textEncoder", prefix: "cond_stage_model.transformer.", kind: "transformers" }],
  sd2: [{ component: "textEncoder", prefix: "cond_stage_model.model.", kind: "openclip" }],
  sdxl: [{ component: "textEncoder", prefix: "conditioner.embedders.0.transformer.", kind: "transformers" }, openClip],
  "sdxl-refiner": [{ ...openClip, prefix: "conditioner.embedders.0.model." }],
} as const satisfies Record<ModelFamily, readonly TextPlace[]>;

/** Where a family's published single files have these text encoders. */
export function originalTextEncoders(family: ModelFamily, parts: readonly TextEncoderPart[]): OriginalParts["textEncoders"] {
  const places: readonly TextPlace[] = textPlaces[family];
  return places.flatMap(place =>
    parts.filter(({ component }) => component === place.component).map(({ config }) => ({ ...place, config })),
  );
}

/** Null for a name that single files have no place for. */
export function originalNames(parts: OriginalParts): (component: ComponentName, name: string) => OriginalKey | null {
  const forwards = originalKeys(parts);
  const unetBlocks = originalUnetBlocks(parts.unet.levels);
  const vae = vaeTable(parts.vae);
  const found = (component: ComponentName, name: string): OriginalKey | null => {
    if (component === "unet") return unetKey(name, unetBlocks);
    if (component === "vae") return { key: vaePrefix + vaeKey(name, vae) };
    const place = parts.textEncoders.find(part => part.component === component);
    if (!place) return null;
    const own: OriginalKey = place.kind === "openclip" ? openClipKey(name) : { key: `text_model.${name}` };
    return { ...own, key: place.prefix + own.key };
  };
  return (component, name) => {
    const original = found(component, name);
    // What is written is what will be read.
    const read = original && forwards(original.key);
    const isSame = Array.isArray(read) && read.some(use => use.component === component && use.name === name);
    return isSame ? original : null;
  };
}

function unetKey(name: string, blocks: ReadonlyMap<string, string>): OriginalKey | null {
  const end = name.lastIndexOf(".");
  const module = originalModule(name.slice(0, end), blocks);
  return module === undefined ? null : { key: unetPrefix + module + name.slice(end) };
}

/** The longest block that the name begins with, then the layers within it. */
function vaeKey(name: string, { blocks, inner }: ReturnType<typeof vaeTable>): string {
  const [original = "", block = ""] = [...blocks]
    .filter(([, prefix]) => name.startsWith(prefix))
    .reduce((best, entry) => (entry[1].length > (best[1] ?? "").length ? entry : best), ["", ""]);
  const rest = name.slice(block.length);
  // Only attention's layers go by other names, and the shortcut.
  const layer = [...inner].find(([, now]) => rest.startsWith(now));
  return original + (layer ? layer[0] + rest.slice(layer[1].length) : rest);
}

function openClipKey(name: string): OriginalKey {
  if (name === "text_projection.weight") return { key: "text_projection", transposed: true };
  const outer = Object.entries(openClipOuter).find(([, now]) => now === name);
  if (outer) return { key: outer[0] };
  const [, layer = "", rest = ""] = /^encoder\.layers\.(\d+)\.(.+)$/.exec(name) ?? [];
  const block = `transformer.resblocks.${layer}.`;
  const [, projection, kind] = /^self_attn\.(q|k|v)_proj\.(weight|bias)$/.exec(rest) ?? [];
  if (projection) return { key: `${block}attn.in_proj_${kind}`, piece: { index: "qkv".indexOf(projection), of: 3 } };
  const inner = openClipInner.find(([, now]) => rest.startsWith(now));
  return { key: block + (inner ? inner[0] + rest.slice(inner[1].length) : rest) };
}
