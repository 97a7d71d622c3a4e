/**
 * Where a forward pass is cut so that its parts may be computed again for their gradients (Griewank and Walther 2000; Chen et al.
 * 2016): what crosses a cut is kept, what lies between two cuts is there only while that part is differentiated.
 */
import type { Node, Value } from "../graph/ir.ts";
import { keptOps } from "./recompute.ts";
import { bytesOf, savedValues } from "./saves.ts";

/** What a node has made that outlives it, in bytes. */
interface Made {
  bytes: number;
  /** Index of the last node that reads it; of what is kept in any case, beyond all of them. */
  lastUse: number;
  /** Whether a gradient reads it. */
  isSaved: boolean;
}

/** The best bound is looked for until it is known to this share of itself. */
const precision = 0.01;

/**
 * Consecutive parts of `nodes`, cut where least is held at once: at each part what crossed the cuts before it, and what its own
 * gradients read.
 * @param reaching the values that gradients are wanted in, or lead through
 */
export function segmentsOf(nodes: readonly Node[], reaching: ReadonlySet<Value>): readonly (readonly Node[])[] {
  const made = madeBy(nodes, reaching);
  const all = made.flat().reduce((sum, { bytes, isSaved }) => sum + (isSaved ? bytes : 0), 0);
  let [low, high] = [0, all];
  let best: readonly number[] = [0];
  while (high - low > precision * high) {
    const bound = (low + high) / 2;
    const cuts = cutsWithin(made, bound);
    if (cuts) best = cuts;
    [low, high] = cuts ? [low, bound] : [bound, high];
  }
  return best.map((start, i) => nodes.slice(start, best[i + 1]));
}

/** By node. A reshape holds nothing of its own: who reads it reads what it was made of. */
function madeBy(nodes: readonly Node[], reaching: ReadonlySet<Value>): readonly (readonly Made[])[] {
  const found = new Map<Value, Made>();
  const made = nodes.map((node, index) => {
    for (const input of node.inputs) {
      const held = found.get(input);
      if (held) held.lastUse = Math.max(held.lastUse, index);
    }
    if (node.op === "reshape") {
      const held = found.get(node.inputs[0]!);
      if (held) found.set(node.outputs[0]!, held);
      return [];
    }
    return node.outputs.map(output => {
      const own: Made = { bytes: bytesOf(output), lastUse: keptOps.has(node.op) ? nodes.length : index, isSaved: false };
      found.set(output, own);
      return own;
    });
  });
  for (const node of nodes)
    for (const value of savedValues(node, reaching)) {
      const held = found.get(value);
      if (held) held.isSaved = true;
    }
  return made;
}

/** Starts of parts of which none holds more than `bound` bytes, with as little as possible across the cuts; null: there are none. */
function cutsWithin(made: readonly (readonly Made[])[], bound: number): readonly number[] | null {
  /** Of parts that end before a node: least bytes across their cuts, and where the last of them starts. */
  const ends: { kept: number; start: number }[] = [{ kept: 0, start: 0 }];
  for (let end = 1; end <= made.length; end++) {
    const best = { kept: Number.POSITIVE_INFINITY, start: end - 1 };
    let [inside, across] = [0, 0];
    for (let start = end - 1; start >= 0 && inside <= bound; start--) {
      for (const { bytes, lastUse, isSaved } of made[start]!) {
        if (isSaved) inside += bytes;
        if (lastUse >= end) across += bytes;
      }
      const { kept } = ends[start]!;
      if (kept + inside <= bound && kept + across < best.kept) Object.assign(best, { kept: kept + across, start });
    }
    ends.push(best);
  }
  if (ends.at(-1)!.kept === Number.POSITIVE_INFINITY) return null;
  const cuts: number[] = [];
  for (let end = made.length; end > 0; end = ends[end]!.start) cuts.unshift(ends[end]!.start);
  return cuts;
}
