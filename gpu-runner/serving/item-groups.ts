/** Which items of a batch can be computed by one session, and how tensors are parted and joined along the batch axis. */
import type { TensorF32 } from "../components.ts";
import type { Feeds } from "../session.ts";

/** Indices of the items of each key, in the order of the keys' first appearance. */
export function groupItems(keys: readonly string[]): number[][] {
  return [...Map.groupBy(keys.keys(), index => keys[index]!).values()];
}

/** The given items of the feeds that have a batch axis (the first); the others as they are. */
export function selectItems(feeds: Feeds, items: readonly number[], isBatched: (name: string) => boolean): Feeds {
  return Object.fromEntries(Object.entries(feeds).map(([name, tensor]) => [name, isBatched(name) ? select(tensor, items) : tensor]));
}

function select({ data, shape }: TensorF32, items: readonly number[]): TensorF32 {
  const size = data.length / shape[0]!;
  const out = new Float32Array(items.length * size);
  items.forEach((item, i) => {
    out.set(data.subarray(item * size, (item + 1) * size), i * size);
  });
  return { data: out, shape: [items.length, ...shape.slice(1)] };
}

/** Results of all groups as those of the whole batch, each item at its own place. */
export function joinItems(
  groups: readonly { items: readonly number[]; results: Readonly<Record<string, TensorF32>> }[],
): Record<string, TensorF32> {
  const count = groups.reduce((sum, { items }) => sum + items.length, 0);
  const joined: Record<string, TensorF32> = {};
  for (const { items, results } of groups)
    for (const [name, { data, shape }] of Object.entries(results)) {
      const size = data.length / items.length;
      joined[name] ??= { data: new Float32Array(count * size), shape: [count, ...shape.slice(1)] };
      items.forEach((item, i) => {
        joined[name]!.data.set(data.subarray(i * size, (i + 1) * size), item * size);
      });
    }
  return joined;
}
