/** A trained model as one file in the original layout, which A1111 and ComfyUI read. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseJson } from "../../../shared/json.ts";
import type { ModelSource } from "../../weights/model-source.ts";
import { originalNames, originalTextEncoders } from "../../weights/original-names.ts";
import { withSafetensors } from "../../weights/safetensors.ts";
import { bytesOf, type TensorToWrite, writeSafetensors } from "../../weights/safetensors-write.ts";
import { type SourceTensor, sortKeys } from "../../weights/sorted-keys.ts";
import { mostWeightBytes, type TrainedWeight, transposed } from "./full-model.ts";

const file = "single-file/model.safetensors";

/**
 * @param source a diffusers folder @param folder where its copy lies as `model/`: configs beside the file name its tokenizers
 * @returns paths below the folder; none where the original layout has no keys for such a model, or the file were too large to be sent
 */
export function writeSingleFile(folder: string, source: ModelSource, trained: TrainedWeight): string[] {
  const placeOf = originalNames({ ...source, textEncoders: originalTextEncoders(source.family, source.textEncoders) });
  const tensors = [...sortKeys(source).tensors.values()].flatMap(part => [...part.values()]);
  const placed = tensors.flatMap(tensor => {
    const place = placeOf(tensor.component, tensor.name);
    return place ? [{ tensor, place }] : [];
  });
  const bytes = tensors.reduce((sum, { shape }) => sum + 4 * shape.reduce((a, b) => a * b, 1), 0);
  if (placed.length < tensors.length || bytes > mostWeightBytes) return [];
  mkdirSync(join(folder, "single-file"), { recursive: true });
  const entries = [...Map.groupBy(placed, ({ place }) => place.key)].map(([key, pieces]): TensorToWrite => {
    const ordered = pieces.toSorted((a, b) => (a.place.piece?.index ?? 0) - (b.place.piece?.index ?? 0));
    const [{ tensor, place }] = ordered as [(typeof ordered)[number]];
    const [rows = 1, ...rest] = place.transposed ? tensor.shape.toReversed() : shapeThere(tensor);
    return {
      name: key,
      dtype: "F32",
      shape: tensor.shape.length === 0 ? [] : [rows * ordered.length, ...rest],
      data: () =>
        ordered.map(piece =>
          bytesOf(piece.place.transposed ? transposed(valuesOf(piece.tensor, trained), rows) : valuesOf(piece.tensor, trained)),
        ),
    };
  });
  writeSafetensors(join(folder, file), entries, { metadata: { format: "pt" } });
  return [file, writeConfigs(folder, source)];
}

/** The autoencoder's attention is made of 1x1 convolutions there. */
function shapeThere({ component, name, shape }: SourceTensor): readonly number[] {
  return component === "vae" && shape.length === 2 && name.includes(".attentions.") ? [...shape, 1, 1] : shape;
}

function valuesOf({ component, name, file: path, entry }: SourceTensor, trained: TrainedWeight): Float32Array {
  return trained(component, name) ?? withSafetensors(path, found => found.readFloat32(entry.name));
}

/** Other programs know the published families by their keys; widths of one's own, and what is predicted, stand here. */
function writeConfigs(folder: string, { path, textEncoders, schedulerConfig, forceZerosForEmptyPrompt }: ModelSource): string {
  const read = (name: string): unknown => parseJson(readFileSync(join(path, name, "config.json"), "utf8"));
  const parts = textEncoders.map(({ component }) => (component === "textEncoder" ? "" : "_2"));
  const configs = {
    ...{ unet: read("unet"), vae: read("vae") },
    ...Object.fromEntries(
      parts.flatMap(end => [
        [`text_encoder${end}`, read(`text_encoder${end}`)],
        [`tokenizer${end}`, `../model/tokenizer${end}`],
      ]),
    ),
    ...{ scheduler: schedulerConfig, force_zeros_for_empty_prompt: forceZerosForEmptyPrompt },
  };
  const json = file.replace(/\.safetensors$/, ".json");
  writeFileSync(join(folder, json), JSON.stringify(configs, null, 2));
  return json;
}
