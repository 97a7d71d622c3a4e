/** Which models the cases may name. */
import { join } from "node:path";
import { z } from "zod";
import { parseConfig } from "../weights/configs.ts";
import { pipelineClasses } from "../weights/model-folder.ts";
import type { GoldenCase } from "./kind.ts";

const indexSchema = z.object({ _class_name: z.string() });

/** Why a case's model cannot be loaded, null where it can. A folder of a known kind that is broken is not "unsupported": it fails. */
export function unsupportedModel(goldenCase: GoldenCase, modelPath: string | null): string | null {
  if (goldenCase.adapters?.length) return "adapters";
  return unsupportedBase(modelPath);
}

/** The same for a case whose adapters its kind knows. */
export function unsupportedBase(modelPath: string | null): string | null {
  if (modelPath === null) return "no model";
  if (modelPath.endsWith(".safetensors")) return "single-file model";
  const { _class_name: name } = parseConfig(join(modelPath, "model_index.json"), indexSchema);
  return pipelineClasses.some(known => known === name) ? null : name;
}
