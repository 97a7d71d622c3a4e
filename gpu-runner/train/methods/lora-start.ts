/** Going on from a LoRA of any layout that is served: kohya's, diffusers', peft's names, OneTrainer's and ComfyUI's. */
import { type LoraPart, splitLoraKey } from "../../../shared/adapters/lora-keys.ts";
import { moduleAliases } from "../../adapters/lora/module-names.ts";
import { metadataScales, plainScales } from "../../adapters/lora/scales.ts";
import type { TensorF32, TrainableModel } from "../../components.ts";
import type { TrainedTensors } from "../trained-tensors.ts";
import type { StartFile } from "./index.ts";
import { type LoraLayer, loraNames } from "./lora.ts";

interface FoundModule {
  /** As the file names it. */
  alias: string;
  parts: Map<LoraPart, TensorF32>;
}

/**
 * Fills the layers with the file's pairs. The file's scale goes into `up`, since a training has one alpha for all.
 * @throws RangeError for a layer that the file lacks or has of another rank or kind, and for one that is not trained
 */
export function startFromLora(tensors: TrainedTensors, layers: readonly LoraLayer[], model: TrainableModel, start: StartFile): void {
  const modules = modulesOf(model, start);
  const text = start.metadata.lora_adapter_metadata;
  const scales = text === undefined ? plainScales("peft") : metadataScales("start_from", text);
  for (const layer of layers) {
    const id = `${layer.component}/${layer.weight}`;
    const found = modules.get(id);
    const names = loraNames(layer);
    const take = (part: LoraPart, name: string): Float32Array => {
      const values = found?.parts.get(part);
      const { data, shape } = tensors.value(name);
      if (values?.data.length !== data.length)
        throw new RangeError(`settings.start_from: expected ${name} [${shape}], got [${values?.shape ?? "none"}]`);
      return values.data;
    };
    tensors.value(names.down).data.set(take("down", names.down));
    const alpha = found?.parts.get("alpha")?.data[0] ?? null;
    const scale = scales.scaleOf({ file: "start_from", module: found?.alias ?? id, rank: layer.rank, alpha }) / layer.scale;
    tensors.value(names.up).data.set(take("up", names.up).map(value => scale * value));
    if (layer.dora)
      tensors.value(names.magnitude).data.set(take(found?.parts.has("doraScale") ? "doraScale" : "magnitude", names.magnitude));
    modules.delete(id);
  }
  const [left] = modules.keys();
  if (left !== undefined) throw new RangeError(`settings.start_from: expected layers that are trained, got ${left} as well`);
}

/** By component and weight. */
function modulesOf({ weightShapes }: TrainableModel, { tensors }: StartFile): Map<string, FoundModule> {
  const aliases = moduleAliases(weightShapes);
  const modules = new Map<string, FoundModule>();
  for (const [key, tensor] of tensors) {
    const split = splitLoraKey(key);
    const alias = split?.module.replace(/^base_model\.model\./, "") ?? "";
    const module = aliases.get(alias);
    if (!split || !module) throw new RangeError(`settings.start_from: expected the pairs of a LoRA of this base, got ${key}`);
    const id = `${module.component}/${module.name}.weight`;
    const found = modules.get(id) ?? { alias, parts: new Map() };
    found.parts.set(split.part, tensor);
    modules.set(id, found);
  }
  return modules;
}
