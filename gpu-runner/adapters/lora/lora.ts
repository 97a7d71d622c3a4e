/** Opens a LoRA: one file, or a folder of peft's with its configuration. */
import { readFileSync } from "node:fs";
import { parseJson } from "../../../shared/json.ts";
import { ModelError } from "../../weights/model-error.ts";
import type { LoraAdapter, WeightShapes } from "../adapter.ts";
import type { DiskFile } from "../content-hash.ts";
import { type TensorFile, withTensorFile } from "../tensor-file.ts";
import { bundledInversions, isBundled } from "../textual-inversion.ts";
import { readLora } from "./open-lora.ts";
import { type LoraScales, metadataScales, peftScales, plainScales } from "./scales.ts";

/** Throws ModelError naming the key that is unknown or does not fit the base. */
export async function openLora(files: readonly DiskFile[], hash: string, shapes: WeightShapes): Promise<LoraAdapter> {
  const weights = files.filter(({ path }) => !path.endsWith(".json"));
  const [only] = weights;
  if (!only || weights.length > 1) throw new ModelError(files[0]!.file, "files", "one file of weights", String(weights.length));
  return withTensorFile(only.file, file => {
    const bundled = [...file.tensors.keys()].filter(isBundled);
    const keys = [...file.tensors.keys()].filter(key => !isBundled(key));
    const { changes, report } = readLora(file, keys, shapes, scalesOf(file, files));
    const inversions = bundledInversions(file, bundled, hash, shapes);
    return {
      kind: "lora",
      hash,
      changes,
      bundled: inversions,
      report: { ...report, used: [...report.used, ...inversions.flatMap(({ report: { used } }) => used)] },
    };
  });
}

const peftPrefix = "base_model.model.";
const peftConfig = "adapter_config.json";

function scalesOf(file: TensorFile, files: readonly DiskFile[]): LoraScales {
  const config = files.find(({ path }) => path === peftConfig);
  const keys = [...file.tensors.keys()];
  if (config) {
    const value = parseJson(readFileSync(config.file, "utf8"));
    return peftScales({
      file: config.file,
      key: peftConfig,
      config: value,
      prefix: keys.some(key => key.startsWith(peftPrefix)) ? peftPrefix : "",
    });
  }
  if (keys.some(key => key.startsWith(peftPrefix)))
    throw new ModelError(file.path, peftConfig, "peft's configuration beside its weights", "none");
  const metadata = file.metadata.lora_adapter_metadata;
  if (metadata !== undefined) return metadataScales(file.path, metadata);
  // sd-scripts and LyCORIS write `dora_scale`, and who uses their files reads the weight as A1111 and ComfyUI do.
  return plainScales(keys.some(key => key.endsWith(".dora_scale")) ? "interpolate" : "peft");
}
