/**
 * Gradients of softmax attention, with the probabilities P computed again by chunks of heads and queries (Dao et al. 2022):
 * D = rowsum(dO O), dS = P (dO V^T - D), dV = P^T dO, dQ = scale dS K, dK = scale dS^T Q. The scores are by far the largest of these
 * values, so dO V^T - D is one product, of [dO, -D] and [V, 1]: a pass over the scores less.
 */
import type { NodeOf, Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";
import { once, type Thunk } from "./thunk.ts";

/** Elements of a chunk's scores: 4 MB stay in the cache between the products that read them. */
const chunkElements = 2 ** 20;

export function attentionGradients(node: NodeOf<"attention">, gradient: Value): readonly Thunk[] {
  return gradientsInChunks(node, gradient, chunkElements);
}

/** @param limit elements of the scores that are there at once */
export function gradientsInChunks({ inputs, outputs, attributes }: NodeOf<"attention">, gradient: Value, limit: number): readonly Thunk[] {
  const [query, key, value] = inputs as [Value, Value, Value];
  const { heads, causal } = attributes;
  const whole = once(() => {
    const byHead = (x: Value): Value => headsOf(x, heads);
    // Of each query and head, [B, h, T, 1].
    const products = ops.reduceSum(byHead(ops.multiply(gradient, outputs[0]!)), [3]);
    const [values, dO] = [byHead(value), byHead(gradient)];
    const ones = ops.scale(ops.slice(values, 3, 0, 1), 0, 1);
    const left = ops.concat([dO, ops.scale(products, -1)], 3);
    return chunked({ query: byHead(query), key: byHead(key), dO, left, right: ops.concat([values, ones], 3) }, causal, limit);
  });
  return [() => ofHeads(whole().dQuery, query), () => ofHeads(whole().dKey, key), () => ofHeads(whole().dValue, value)];
}

/** All [B, h, T or S, d]. */
interface ByHead {
  query: Value;
  key: Value;
  dO: Value;
  /** [dO, -D], [B, h, T, d + 1]. */
  left: Value;
  /** [V, 1], [B, h, S, d + 1]. */
  right: Value;
}

function chunked(all: ByHead, causal: boolean, limit: number): { dQuery: Value; dKey: Value; dValue: Value } {
  const [batch, heads, queries] = all.query.shape as [number, number, number];
  const keys = all.key.shape[2] as number;
  const headsAtOnce = Math.min(heads, Math.max(1, Math.floor(limit / (batch * queries * keys))));
  const queriesAtOnce = Math.min(queries, Math.max(1, Math.floor(limit / (batch * headsAtOnce * keys))));
  const ofHeads: { dQuery: Value; dKey: Value; dValue: Value }[] = [];
  // One chunk after the other, or the scores of all would be there at once.
  let before: Value[] = [];
  for (let head = 0; head < heads; head += headsAtOnce) {
    const end = Math.min(heads, head + headsAtOnce);
    const taken = mapValues(all, x => part(x, 1, head, end));
    const dQueries: Value[] = [];
    let [dKey, dValue]: [Value | null, Value | null] = [null, null];
    for (let row = 0; row < queries; row += queriesAtOnce) {
      const rowEnd = Math.min(queries, row + queriesAtOnce);
      const rows = (x: Value): Value => part(x, 2, row, rowEnd);
      const chunk = { ...taken, query: ops.after(rows(taken.query), before), dO: rows(taken.dO), left: rows(taken.left) };

      const gradients = ofChunk(chunk, causal ? row : null);
      before = Object.values(gradients);
      dQueries.push(gradients.dQuery);
      dKey = dKey ? ops.add(dKey, gradients.dKey) : gradients.dKey;
      dValue = dValue ? ops.add(dValue, gradients.dValue) : gradients.dValue;
    }
    ofHeads.push({ dQuery: joined(dQueries, 2), dKey: dKey!, dValue: dValue! });
  }
  return {
    dQuery: joined(
      ofHeads.map(({ dQuery }) => dQuery),
      1,
    ),
    dKey: joined(
      ofHeads.map(({ dKey }) => dKey),
      1,
    ),
    dValue: joined(
      ofHeads.map(({ dValue }) => dValue),
      1,
    ),
  };
}

/** `firstRow`: the place of the first query among all where a query sees only what precedes it, else null. */
function ofChunk({ query, key, dO, left, right }: ByHead, firstRow: number | null): { dQuery: Value; dKey: Value; dValue: Value } {
  const scale = 1 / Math.sqrt(query.shape[3] as number);
  const scores = ops.matmul(query, key, { transposeB: true, scale });
  const probabilities = ops.softmax(firstRow === null ? scores : ops.maskFuture(scores, firstRow));
  const dScores = ops.multiply(probabilities, ops.matmul(left, right, { transposeB: true }));
  return {
    dQuery: ops.matmul(dScores, key, { scale }),
    dKey: ops.matmul(dScores, query, { transposeA: true, scale }),
    dValue: ops.matmul(probabilities, dO, { transposeA: true }),
  };
}

/** [B, T, C] to [B, h, T, C / h]. */
function headsOf(x: Value, heads: number): Value {
  const [batch, length, width] = x.shape as [number, number, number];
  return ops.transpose(ops.reshape(x, [batch, length, heads, width / heads]), [0, 2, 1, 3]);
}

function ofHeads(x: Value, like: Value): Value {
  return ops.reshape(ops.transpose(x, [0, 2, 1, 3]), like.shape);
}

function part(x: Value, axis: number, start: number, end: number): Value {
  return start === 0 && end === x.shape[axis] ? x : ops.slice(x, axis, start, end);
}

function joined(parts: readonly Value[], axis: number): Value {
  return parts.length === 1 ? parts[0]! : ops.concat(parts, axis);
}

function mapValues(all: ByHead, f: (x: Value) => Value): ByHead {
  const { query, key, dO, left, right } = all;
  return { query: f(query), key: f(key), dO: f(dO), left: f(left), right: f(right) };
}
