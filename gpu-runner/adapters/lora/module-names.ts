/**
 * Which of the base's modules a name in a LoRA file means. Kohya's names have every dot turned to an underscore, which cannot be turned
 * back, so all names that trainers give to each module of the base are listed, and a file's name is looked up among them.
 */
import { levelsOfModules, originalModule, originalUnetBlocks } from "../../weights/original-unet.ts";
import type { AdapterComponent, WeightShapes } from "../adapter.ts";

/** A module of the base: its tensors are `<name>.weight` and perhaps `<name>.bias`. */
export interface BaseModule {
  component: AdapterComponent;
  name: string;
}

type Aliases = ReadonlyMap<string, BaseModule>;

const cached = new WeakMap<WeightShapes, Aliases>();

/** All names of all modules of a base; made once per base. */
export function moduleAliases(shapes: WeightShapes): Aliases {
  const known = cached.get(shapes);
  if (known) return known;
  const aliases = new Map<string, BaseModule>();
  const add = (alias: string, module: BaseModule) => {
    if (!aliases.has(alias)) aliases.set(alias, module);
  };
  const unet = modulesOf(shapes, "unet");
  for (const module of unet) addUnet(add, module);
  const blocks = originalUnetBlocks(levelsOfModules(unet.map(({ name }) => name)));
  for (const module of unet) {
    const original = originalModule(module.name, blocks);
    if (original !== undefined) addOriginal(add, module, original);
  }
  const lone = !(shapes.textEncoder && shapes.textEncoder2);
  for (const component of ["textEncoder", "textEncoder2"] as const)
    for (const module of modulesOf(shapes, component)) addText(add, module, lone);
  cached.set(shapes, aliases);
  return aliases;
}

type Add = (alias: string, module: BaseModule) => void;

function modulesOf(shapes: WeightShapes, component: AdapterComponent): BaseModule[] {
  const names = [...(shapes[component]?.keys() ?? [])].filter(name => name.endsWith(".weight"));
  return names.map(name => ({ component, name: name.slice(0, -".weight".length) }));
}

function addUnet(add: Add, module: BaseModule): void {
  const { name } = module;
  add(`lora_unet_${underscored(name)}`, module);
  add(`unet.${name}`, module);
  add(`lora_unet.${name}`, module);
  add(name, module);
}

function addOriginal(add: Add, module: BaseModule, original: string): void {
  add(`lora_unet_${underscored(original)}`, module);
  add(`diffusion_model.${original}`, module);
  add(`unet.${original}`, module);
}

/** `lone`: the base has one text encoder, so that its number in a file says nothing. */
function addText(add: Add, module: BaseModule, lone: boolean): void {
  const first = module.component === "textEncoder";
  const number = first ? "1" : "2";
  // The projection stands beside the transformer, not in it.
  const inner = module.name === "text_projection" ? module.name : `text_model.${module.name}`;
  const kohya = lone ? ["lora_te", "lora_te1", "lora_te2"] : first ? ["lora_te", "lora_te1"] : [`lora_te${number}`];
  for (const prefix of kohya) {
    add(`${prefix}_${underscored(inner)}`, module);
    add(`${prefix}.${inner}`, module);
  }
  const diffusers = lone ? ["text_encoder", "text_encoder_2"] : [first ? "text_encoder" : "text_encoder_2"];
  for (const prefix of diffusers) for (const name of [inner, module.name]) add(`${prefix}.${name}`, module);
  const clip = first ? ["clip_l", "clip_h"] : ["clip_g"];
  for (const name of clip) {
    add(`text_encoders.${name}.transformer.${inner}`, module);
    add(`${name}.${inner}`, module);
    add(`${name}.transformer.${inner}`, module);
  }
  if (lone || first) for (const name of [inner, module.name]) add(name, module);
}

function underscored(name: string): string {
  return name.replaceAll(".", "_");
}
