/** Activation functions by the names that configs use. */
import type { Value } from "../graph/ir.ts";
import { gelu, quickGelu, silu } from "../graph/ops.ts";
import type { ActivationName } from "../weights/configs.ts";

export const activations = {
  silu,
  swish: silu,
  gelu,
  quick_gelu: quickGelu,
} satisfies Record<ActivationName, (x: Value) => Value>;
