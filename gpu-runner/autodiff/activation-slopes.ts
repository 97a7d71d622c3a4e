/** Slopes of the pointwise functions of hypernetworks, from x and y = f(x). */
import type { Value } from "../graph/ir.ts";
import type { ActivationKind } from "../graph/ops.ts";
import * as ops from "../graph/ops.ts";

/** Beyond this, e^x is all of the slope (below) or none of it (above) in fp32. */
const far = 40;

export const activationSlopes = {
  // 1 where x > 0, else 0.01.
  leakyRelu: x => ops.scale(ops.step(x, 0), 0.99, 0.01),
  // e^min(x, 0).
  elu: x => ops.exp(ops.clamp(x, -2 * far, 0)),
  // clamp(x + 3, 0, 6) / 6, plus x / 6 between -3 and 3.
  hardSwish: x => {
    const inside = ops.subtract(ops.step(x, -3), ops.step(x, 3));
    return ops.scale(ops.add(ops.clamp(ops.scale(x, 1, 3), 0, 6), ops.multiply(x, inside)), 1 / 6);
  },
  // 1 - y^2.
  tanh: (_, y) => ops.scale(ops.multiply(y, y), -1, 1),
  // y (1 - y).
  sigmoid: (_, y) => ops.multiply(y, ops.scale(y, -1, 1)),
  // (1 - |y|)^2.
  softsign: (_, y) => {
    const rest = ops.scale(ops.add(ops.relu(y), ops.relu(ops.scale(y, -1))), -1, 1);
    return ops.multiply(rest, rest);
  },
  // With t = tanh(log(1 + e^x)) = n / (n + 2), n = e^x (e^x + 2), and s = sigmoid(x): t + x s (1 - t^2).
  mish: x => {
    const e = ops.exp(ops.clamp(x, -2 * far, far / 2));
    const n = ops.multiply(e, ops.scale(e, 1, 2));
    const t = ops.multiply(n, ops.reciprocal(ops.scale(n, 1, 2)));
    const rest = ops.scale(ops.multiply(t, t), -1, 1);
    return ops.add(t, ops.multiply(ops.multiply(x, ops.activate(x, "sigmoid")), rest));
  },
} satisfies Record<ActivationKind, (x: Value, y: Value) => Value>;
