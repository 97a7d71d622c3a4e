/** LoRAs made by hand. */
import type { AdapterComponent, LoraAdapter, WeightChange } from "../../../gpu-runner/adapters/adapter.ts";
import type { LoraUse } from "../../../gpu-runner/components.ts";
import { wave } from "../support/graph.ts";

type Shapes = ReadonlyMap<string, readonly number[]>;

/** A LoRA of these changes; its name is its hash. */
export function lora(name: string, changes: readonly WeightChange[]): LoraAdapter {
  return { kind: "lora", hash: `sha256:${name}`, report: { layout: "test", used: [], skipped: [] }, changes, bundled: [] };
}

export function use(adapter: LoraAdapter, weight = 1): LoraUse {
  return { adapter, weight, dora: null };
}

/** A pair for each weight whose name matches; all of them can also be merged. */
export function pairs(component: AdapterComponent, shapes: Shapes, pattern: RegExp, rank: number, phase: number): WeightChange[] {
  return [...shapes]
    .filter(([name]) => pattern.test(name))
    .map(([name, shape]) => {
      const [out, width] = shape as [number, number];
      const down = wave([rank, width], phase).data;
      const up = wave([out, rank], phase + 1).data;
      const merge = (base: Float32Array, weight: number): Float32Array =>
        base.map((value, i) => {
          let sum = 0;
          for (let r = 0; r < rank; r++) sum += up[Math.floor(i / width) * rank + r]! * down[r * width + (i % width)]!;
          return value + weight * 0.5 * sum;
        });
      return { component, name, shape, lowRank: { rank, down, up, scale: 0.5 }, merge };
    });
}

/** The same changes, of which it is not known that they are pairs. */
export function opaque(changes: readonly WeightChange[]): WeightChange[] {
  return changes.map(change => ({ ...change, lowRank: null }));
}

/** A difference added to each tensor whose name matches. */
export function differences(component: AdapterComponent, shapes: Shapes, pattern: RegExp, phase: number): WeightChange[] {
  return [...shapes]
    .filter(([name]) => pattern.test(name))
    .map(([name, shape]) => {
      const { data } = wave(shape, phase);
      return { component, name, shape, lowRank: null, merge: (base, weight) => base.map((value, i) => value + weight * 0.05 * data[i]!) };
    });
}
