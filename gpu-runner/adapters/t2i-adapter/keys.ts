/**
 * How a T2I-Adapter's file names its tensors. diffusers: `adapter.body.<level>.resnets.<block>`; the original release numbers the blocks of all
 * levels in one row, `body.<n>`, with or without the prefix; its light adapter calls a level's blocks `body.<level>.body.<block>`.
 */
import type { Support } from "../../../shared/support.ts";
import type { T2iAdapterType } from "../../models/t2i-adapter.ts";
import { ModelError } from "../../weights/model-error.ts";
import type { AdapterWeights } from "../adapter-weights.ts";

/** Rows of docs/support.md. */
export const t2iAdapterLayouts = {
  diffusers: { title: "diffusers folder or file: `adapter.body.<level>.resnets`", proof: "reference" },
  original: { title: "original release: `body.<n>`", proof: "reference" },
} as const satisfies Record<string, Support>;
export type T2iAdapterLayout = keyof typeof t2iAdapterLayouts;

/** By architecture. */
export const t2iAdapterForms = {
  full_adapter: { title: "full, SD 1", proof: "reference" },
  full_adapter_xl: { title: "full, SDXL", proof: "reference" },
  light_adapter: { title: "light, SD 1", proof: "reference" },
} as const satisfies Record<T2iAdapterType, Support>;

export interface T2iAdapterKeys {
  layout: T2iAdapterLayout;
  /** Full adapters of SD 1 and XL have the same names. */
  type: Exclude<T2iAdapterType, "full_adapter_xl">;
  levels: readonly { channels: number }[];
  /** Residual blocks of each level. */
  blocks: number;
  keyFor(name: string): string;
}

/** In the releases every full adapter has two residual blocks a level. */
const releasedBlocks = 2;

/** Tells the layout from the keys; `blocks`, per level, where a config says so. Throws ModelError where they are of none. */
export function t2iAdapterKeys(weights: AdapterWeights, given: { blocks: number } | null): T2iAdapterKeys {
  const keys = weights.keys();
  const prefix = keys.every(key => key.startsWith("adapter.")) ? "adapter." : "";
  const inner = keys.map(key => key.slice(prefix.length));
  if (!inner.some(key => key.startsWith("body.0."))) throw new ModelError(weights.path, "body.0", "the blocks of a T2I-Adapter", "none");
  const rows = 1 + Math.max(...inner.map(key => Number(/^body\.(\d+)\./.exec(key)?.[1] ?? -1)));
  const width = (name: string): number => weights.shape(prefix + name, 4)[0]!;
  const count = (pattern: RegExp): number => new Set(inner.flatMap(key => pattern.exec(key)?.[1] ?? [])).size;
  const levels = (amount: number, name: (level: number) => string) =>
    Array.from({ length: amount }, (_, level) => ({ channels: width(name(level)) }));

  if (inner.includes("body.0.out_conv.weight")) {
    const isOriginal = inner.some(key => key.startsWith("body.0.body."));
    return {
      layout: isOriginal ? "original" : "diffusers",
      type: "light_adapter",
      levels: levels(rows, level => `body.${level}.out_conv.weight`),
      blocks: isOriginal ? count(/^body\.0\.body\.(\d+)\./) : count(/^body\.0\.resnets\.(\d+)\./),
      keyFor: name => prefix + (isOriginal ? name.replace(".resnets.", ".body.") : name),
    };
  }
  if (inner.some(key => key.startsWith("body.0.resnets."))) {
    const blocks = count(/^body\.0\.resnets\.(\d+)\./);
    const type = "full_adapter";
    return {
      layout: "diffusers",
      type,
      levels: levels(rows, l => `body.${l}.resnets.0.block1.weight`),
      blocks,
      keyFor: name => prefix + name,
    };
  }
  const blocks = given?.blocks ?? releasedBlocks;
  if (rows % blocks !== 0) throw new ModelError(weights.path, "body", `a multiple of ${blocks} blocks`, String(rows));
  return {
    layout: "original",
    type: "full_adapter",
    levels: levels(rows / blocks, level => `body.${level * blocks}.block1.weight`),
    blocks,
    keyFor: name => prefix + originalName(name, blocks),
  };
}

/** Of the full adapter: the change of width belongs to a level's first block. */
function originalName(name: string, blocks: number): string {
  return name
    .replace(/^body\.(\d+)\.in_conv\./, (_, level: string) => `body.${Number(level) * blocks}.in_conv.`)
    .replace(/^body\.(\d+)\.resnets\.(\d+)\./, (_, level: string, block: string) => `body.${Number(level) * blocks + Number(block)}.`);
}
