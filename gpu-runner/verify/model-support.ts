/** Which models the cases may name. */
import type { GoldenCase } from "./kind.ts";

/** Why a case's model cannot be loaded, null where it can. A model that is broken is not "unsupported": it fails. */
export function unsupportedModel(goldenCase: GoldenCase, modelPath: string | null): string | null {
  if (goldenCase.adapters?.length) return "adapters";
  return unsupportedBase(modelPath);
}

/** The same for a case whose adapters its kind knows. */
export function unsupportedBase(modelPath: string | null): string | null {
  return modelPath === null ? "no model" : null;
}
