/** A trained LoRA in the layouts that others read: sd-scripts' (kohya), diffusers' and peft's. */
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { ModelError } from "../../weights/model-error.ts";
import { type ResultTensor, writeTensors } from "./result.ts";

export interface LoraResult {
  /** `unet.<module>.lora_A.weight`, `.lora_B.weight`, `.lora_magnitude_vector.weight`; also `text_encoder.` and `text_encoder_2.`. */
  tensors: readonly ResultTensor[];
  rank: number;
  alpha: number;
  /** Whether the base has two text encoders, which kohya numbers. */
  hasTwoTextEncoders: boolean;
  /** `ss_…` of sd-scripts. */
  metadata: Readonly<Record<string, string>>;
}

const components = ["unet", "text_encoder", "text_encoder_2"] as const;
type Component = (typeof components)[number];
const parts = [
  [".lora_A.weight", ".lora_down.weight"],
  [".lora_B.weight", ".lora_up.weight"],
  [".lora_magnitude_vector.weight", ".dora_scale"],
] as const;

interface Split {
  component: Component;
  /** As peft names it; of text encoders with `text_model.`, as published files have it. */
  module: string;
  part: (typeof parts)[number];
}

/** Throws ModelError for a name that is no part of a LoRA. */
function split(name: string): Split {
  const component = components.find(prefix => name.startsWith(`${prefix}.`));
  const part = parts.find(([suffix]) => name.endsWith(suffix));
  if (!component || !part)
    throw new ModelError("trained LoRA", name, `${components.join(", ")} and ${parts.map(([s]) => s).join(", ")}`, "another name");
  const module = name.slice(component.length + 1, -part[0].length);
  return { component, module: component === "unet" ? module : inTextModel(module), part };
}

export function inTextModel(module: string): string {
  return module.startsWith("text_model.") || module.startsWith("text_projection") ? module : `text_model.${module}`;
}

/** The name of a module in sd-scripts' files. */
export function kohyaModule(component: Component, module: string, hasTwoTextEncoders: boolean): string {
  const prefixes = { unet: "lora_unet", text_encoder: hasTwoTextEncoders ? "lora_te1" : "lora_te", text_encoder_2: "lora_te2" };
  return `${prefixes[component]}_${module.replaceAll(".", "_")}`;
}

/** Each layout's folder, and what it writes there. @returns the paths of the files */
export const loraLayouts = {
  kohya(folder, result) {
    const { rank, alpha, hasTwoTextEncoders, metadata } = result;
    const alphas = new Map<string, ResultTensor>();
    const tensors = result.tensors.map(({ name, shape, data }): ResultTensor => {
      const { component, module, part } = split(name);
      const key = kohyaModule(component, module, hasTwoTextEncoders);
      alphas.set(key, { name: `${key}.alpha`, shape: [], data: Float32Array.of(alpha) });
      return { name: `${key}${part[1]}`, shape: part[1] === ".dora_scale" ? [data.length, 1] : shape, data };
    });
    const header = { ss_network_module: "networks.lora", ss_network_dim: String(rank), ss_network_alpha: String(alpha), ...metadata };
    writeTensors(folder, "kohya/lora.safetensors", [...tensors, ...alphas.values()], header);
    return ["kohya/lora.safetensors"];
  },
  diffusers(folder, result) {
    const used = new Set(result.tensors.map(({ name }) => split(name).component));
    const config = Object.fromEntries(
      [...used].flatMap(component => Object.entries(peftConfig(result, component)).map(([name, value]) => [`${component}.${name}`, value])),
    );
    const tensors = result.tensors.map(tensor => {
      const { component, module, part } = split(tensor.name);
      return { ...tensor, name: `${component}.${module}${part[0]}` };
    });
    const path = "diffusers/pytorch_lora_weights.safetensors";
    writeTensors(folder, path, tensors, { format: "pt", lora_adapter_metadata: JSON.stringify(config) });
    return [path];
  },
  peft(folder, result) {
    return components.flatMap(component => {
      const own = result.tensors.filter(({ name }) => split(name).component === component);
      if (own.length === 0) return [];
      const paths = [`peft/${component}/adapter_model.safetensors`, `peft/${component}/adapter_config.json`] as const;
      const tensors = own.map(tensor => {
        const { module, part } = split(tensor.name);
        // peft saves a magnitude as a plain parameter.
        const suffix = part[1] === ".dora_scale" ? ".lora_magnitude_vector" : part[0];
        return { ...tensor, name: `base_model.model.${module}${suffix}` };
      });
      writeTensors(folder, paths[0], tensors, { format: "pt" });
      mkdirSync(dirname(join(folder, paths[1])), { recursive: true });
      writeFileSync(join(folder, paths[1]), `${JSON.stringify(peftConfig(result, component), null, 2)}\n`);
      return [...paths];
    });
  },
} satisfies Record<string, (folder: string, result: LoraResult) => string[]>;

function peftConfig({ tensors, rank, alpha }: LoraResult, component: Component): Record<string, unknown> {
  const own = tensors.map(({ name }) => split(name)).filter(found => found.component === component);
  return {
    peft_type: "LORA",
    r: rank,
    lora_alpha: alpha,
    target_modules: [...new Set(own.map(({ module }) => module))],
    use_dora: own.some(({ part }) => part[1] === ".dora_scale"),
    use_rslora: false,
    lora_dropout: 0,
    bias: "none",
    fan_in_fan_out: false,
    init_lora_weights: true,
    inference_mode: true,
  };
}
