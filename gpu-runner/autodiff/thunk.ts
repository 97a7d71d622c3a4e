/** Gradients that are built only where they are asked for. */
import type { Value } from "../graph/ir.ts";

/** The gradient in one input of a node; null: zero everywhere. */
export type Thunk = () => Value | null;

/** Computed when first asked for. */
export function once<T>(make: () => T): () => T {
  let made: { value: T } | undefined;
  return () => {
    made ??= { value: make() };
    return made.value;
  };
}
