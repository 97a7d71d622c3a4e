/** Activation functions by the names that configs use. */
import type { Value } from "../graph/ir.ts";
import { gelu, quickGelu, silu } from "../graph/ops.ts";

export const activationNames = ["silu", "swish", "gelu", "quick_gelu"] as const;
export type ActivationName = (typeof activationNames)[number];

export const activations = {
  silu,
  swish: silu,
  gelu,
  quick_gelu: quickGelu,
} satisfies Record<ActivationName, (x: Value) => Value>;
