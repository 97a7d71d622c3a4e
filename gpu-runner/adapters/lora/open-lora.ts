/** Reads a LoRA of any layout into the changes of its base's tensors. */
import {
  algorithmLabel,
  algorithmOf,
  type LoraAlgorithm,
  type LoraPart,
  loraNaming,
  splitLoraKey,
  unservedSuffixes,
} from "../../../shared/adapters/lora-keys.ts";
import { ModelError } from "../../weights/model-error.ts";
import type { AdapterReport, WeightChange, WeightShapes } from "../adapter.ts";
import type { TensorFile } from "../tensor-file.ts";
import { algorithms, type ModuleParts, type PartTensor, requirePart } from "./algorithms.ts";
import { type DoraReading, type Magnitude, mergeDora } from "./dora.ts";
import { type BaseModule, moduleAliases } from "./module-names.ts";
import type { LoraScales } from "./scales.ts";

interface FoundModule extends BaseModule {
  /** As the file names it. */
  alias: string;
  parts: Map<LoraPart, PartTensor>;
}

/** Everything of a LoRA file but what is bundled with it. Throws ModelError naming the key that is unknown or does not fit. */
export function readLora(
  file: TensorFile,
  keys: readonly string[],
  shapes: WeightShapes,
  scales: LoraScales,
): { changes: WeightChange[]; report: AdapterReport } {
  const { modules, used, skipped } = collect(file, keys, shapes, scales.prefix);
  const layouts = new Set<string>();
  const changes = [...modules.values()].flatMap(module => {
    const algorithm = algorithmOf(module.alias, module.parts);
    layouts.add(`${loraNaming(`${scales.prefix}${module.alias}`) ?? "bare"}/${algorithmLabel(algorithm, module.parts)}`);
    return changesOf(file.path, module, algorithm, shapes, scales);
  });
  return { changes, report: { layout: [...layouts].sort().join("+"), used, skipped } };
}

function collect(file: TensorFile, keys: readonly string[], shapes: WeightShapes, prefix: string) {
  const aliases = moduleAliases(shapes);
  const modules = new Map<string, FoundModule>();
  const used: string[] = [];
  const skipped: { key: string; why: string }[] = [];
  for (const key of keys) {
    const unserved = unservedSuffixes.find(([suffix]) => key.endsWith(suffix));
    if (unserved) throw new ModelError(file.path, key, "a method that is served", unserved[1]);
    const split = splitLoraKey(key);
    if (!split) throw new ModelError(file.path, key, "a part of a LoRA", "an unknown name");
    const alias = split.module.startsWith(prefix) ? split.module.slice(prefix.length) : split.module;
    const module = aliases.get(alias);
    const absent = module ? null : absentPart(alias, shapes);
    if (absent !== null) {
      skipped.push({ key, why: absent });
      continue;
    }
    if (!module) throw new ModelError(file.path, key, "a module of the base", `${alias}, which it lacks`);
    const id = `${module.component}/${module.name}`;
    const found = modules.get(id) ?? { ...module, alias, parts: new Map<LoraPart, PartTensor>() };
    if (found.parts.has(split.part))
      throw new ModelError(file.path, key, `one "${split.part}" for ${id}`, found.parts.get(split.part)!.key);
    found.parts.set(split.part, { key, shape: file.tensors.get(key)!.shape, data: file.read(key) });
    modules.set(id, found);
    used.push(key);
  }
  return { modules, used, skipped };
}

/** Why a module is nothing to this base, where it belongs to a text encoder that the base does not have. */
function absentPart(alias: string, shapes: WeightShapes): string | null {
  const first = /^(?:lora_te1[_.]|text_encoders\.clip_l\.|clip_l\.)/.test(alias);
  const second = /^(?:lora_te2[_.]|text_encoder_2\.|text_encoders\.clip_g\.|clip_g\.)/.test(alias);
  if (first && !shapes.textEncoder) return "the base has no first text encoder";
  return second && !shapes.textEncoder2 && shapes.textEncoder ? "the base has no second text encoder" : null;
}

function changesOf(
  file: string,
  found: FoundModule,
  algorithm: LoraAlgorithm | null,
  shapes: WeightShapes,
  scales: LoraScales,
): WeightChange[] {
  const { component, name, parts } = found;
  const shape = shapes[component]!.get(`${name}.weight`)!;
  const [out = 1, inputs = 1, ...kernel] = shape;
  const alpha = alphaOf(file, parts);
  const module: ModuleParts = {
    file,
    module: found.alias,
    parts,
    out,
    inputs,
    spatial: kernel.reduce((product, dim) => product * dim, 1),
    scaleOf: rank => scales.scaleOf({ file, module: found.alias, rank, alpha }),
  };
  const changes: WeightChange[] = [];
  if (algorithm !== null) changes.push(weightChange({ component, name: `${name}.weight`, shape }, algorithm, module, scales.dora));
  const bias = biasChange(module, { component, name: `${name}.bias`, shape: shapes[component]!.get(`${name}.bias`) });
  return bias ? [...changes, bias] : changes;
}

function alphaOf(file: string, parts: ReadonlyMap<LoraPart, PartTensor>): number | null {
  const alpha = parts.get("alpha");
  if (!alpha) return null;
  const [value] = alpha.data;
  if (alpha.data.length !== 1 || value === undefined || !Number.isFinite(value))
    throw new ModelError(file, alpha.key, "one finite number", `[${alpha.shape}] ${value}`);
  return value;
}

type Target = Pick<WeightChange, "component" | "name" | "shape">;

function weightChange(target: Target, algorithm: LoraAlgorithm, module: ModuleParts, origin: DoraReading): WeightChange {
  const { delta, lowRank } = algorithms[algorithm](module);
  const magnitude = magnitudeOf(module);
  if (!magnitude) return { ...target, lowRank: lowRank ?? null, merge: (base, weight) => addScaled(base, delta(base), weight) };
  return {
    ...target,
    lowRank: null,
    merge: (base, weight, reading) => mergeDora(base, delta, { magnitude, shape: module, weight, reading: reading ?? origin }),
  };
}

/** peft's has one value per output whatever its shape; kohya's says by its shape along which axis. */
function magnitudeOf(module: ModuleParts): Magnitude | null {
  const part = module.parts.get("magnitude") ?? module.parts.get("doraScale");
  if (!part) return null;
  const { out, inputs } = module;
  const { length } = part.data;
  const perOutput = module.parts.has("magnitude") || part.shape[0] === out;
  if (length !== (perOutput ? out : inputs) || (!perOutput && part.shape[0] !== 1))
    throw new ModelError(module.file, part.key, `[${out}, 1] or [1, ${inputs}]`, `[${part.shape}]`);
  return { axis: perOutput ? "out" : "in", data: part.data };
}

function biasChange(module: ModuleParts, target: Omit<Target, "shape"> & { shape: readonly number[] | undefined }): WeightChange | null {
  const [part, tensor] =
    (["diffBias", "normBias", "upBias"] as const).map(name => [name, module.parts.get(name)] as const).find(([, found]) => found) ?? [];
  if (!part || !tensor) return null;
  if (!target.shape) throw new ModelError(module.file, tensor.key, "a module with a bias", `${target.name}, which the base lacks`);
  if (tensor.data.length !== target.shape[0]) throw new ModelError(module.file, tensor.key, `[${target.shape}]`, `[${tensor.shape}]`);
  const scale = part === "upBias" ? module.scaleOf(requirePart(module, "down").shape[0] ?? 1) : 1;
  return {
    ...target,
    shape: target.shape,
    lowRank: null,
    merge: (base, weight) => addScaled(base, tensor.data, weight * scale),
  };
}

function addScaled(base: Float32Array, change: ArrayLike<number>, weight: number): Float32Array {
  return Float32Array.from(base, (value, i) => value + weight * change[i]!);
}
