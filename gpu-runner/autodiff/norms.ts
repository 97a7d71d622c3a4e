/**
 * Gradients of the norms. With xh = (x - mean) r over n elements and g = gamma dy, dx = r (g - <g>/n - xh <g xh>/n): an affine
 * function of dy and x whose coefficients come from the two sums <g> and <g x>.
 */
import type { NodeOf, Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";
import { once, type Thunk } from "./thunk.ts";

interface Statistics {
  mean: Value;
  inverseDeviation: Value;
}

/** dgamma = <dy xh>, dbeta = <dy>, over items and pixels. */
export function groupNormGradients({ inputs, attributes }: NodeOf<"groupNorm">, gradient: Value): readonly Thunk[] {
  const [x, gamma, beta] = inputs as [Value, Value, Value];
  const [batch, channels, height, width] = x.shape as [number, number, number, number];
  const { groups, epsilon } = attributes;
  const [depth, pixels] = [channels / groups, height * width];
  const grouped = once(() => ops.reshape(x, [batch, groups, depth, pixels]));
  const dy = once(() => ops.reshape(gradient, [batch, groups, depth, pixels]));
  const statistics = once((): Statistics => {
    const { mean, inverseDeviation } = ops.moments(ops.reshape(x, [batch, groups, depth * pixels]), epsilon);
    const column = (value: Value): Value => ops.reshape(value, [batch, groups, 1, 1]);
    return { mean: column(mean), inverseDeviation: column(inverseDeviation) };
  });
  // Per item and channel, [B, G, C / G, 1]: <dy> and <dy x>.
  const sum = once(() => ops.reduceSum(dy(), [3]));
  const moment = once(() => ops.reduceSum(ops.multiply(dy(), grouped()), [3]));
  const scales = once(() => ops.reshape(gamma, [groups, depth, 1]));
  return [
    () => {
      const ofGroup = (value: Value): Value => ops.reduceSum(ops.multiply(value, scales()), [2]);
      const slopes = coefficients(statistics(), ofGroup(sum()), ofGroup(moment()), depth * pixels);
      const ofGradient = ops.multiply(dy(), ops.multiply(statistics().inverseDeviation, scales()));
      return ops.reshape(ops.add(ops.add(ofGradient, ops.multiply(grouped(), slopes.ofX)), slopes.constant), x.shape);
    },
    () => {
      const { mean, inverseDeviation } = statistics();
      const perItem = ops.multiply(ops.subtract(moment(), ops.multiply(sum(), mean)), inverseDeviation);
      return ops.reshape(ops.reduceSum(perItem, [0]), gamma.shape);
    },
    () => ops.reshape(ops.reduceSum(sum(), [0]), beta.shape),
  ];
}

/** dgamma = <dy xh>, dbeta = <dy>, over all rows. */
export function layerNormGradients({ inputs, attributes }: NodeOf<"layerNorm">, gradient: Value): readonly Thunk[] {
  const [x, gamma, beta] = inputs as [Value, Value, Value];
  const last = x.shape.length - 1;
  const rows = x.shape.slice(0, -1).map((_, axis) => axis);
  const statistics = once((): Statistics => ops.moments(x, attributes.epsilon));
  const ofRows = (value: Value, like: Value): Value => (rows.length === 0 ? value : ops.reshape(ops.reduceSum(value, rows), like.shape));
  return [
    () => {
      const scaled = ops.multiply(gradient, gamma);
      const moment = ops.reduceSum(ops.multiply(scaled, x), [last]);
      const slopes = coefficients(statistics(), ops.reduceSum(scaled, [last]), moment, x.shape[last] as number);
      const ofGradient = ops.multiply(scaled, statistics().inverseDeviation);
      return ops.add(ops.add(ofGradient, ops.multiply(x, slopes.ofX)), slopes.constant);
    },
    () => {
      const { mean, inverseDeviation } = statistics();
      return ofRows(ops.multiply(gradient, ops.multiply(ops.subtract(x, mean), inverseDeviation)), gamma);
    },
    () => ofRows(gradient, beta),
  ];
}

/** From <g> and <g x>: the factor of x, -r^2 <g xh> / n, and the constant, -r <g> / n - factor * mean. */
function coefficients(
  { mean, inverseDeviation: r }: Statistics,
  sum: Value,
  moment: Value,
  count: number,
): { ofX: Value; constant: Value } {
  const centred = ops.multiply(ops.subtract(moment, ops.multiply(sum, mean)), r);
  const ofX = ops.scale(ops.multiply(centred, ops.multiply(r, r)), -1 / count);
  const constant = ops.subtract(ops.scale(ops.multiply(sum, r), -1 / count), ops.multiply(ofX, mean));
  return { ofX, constant };
}
