/**
 * Hypernetworks of A1111's webui (modules/hypernetworks/hypernetwork.py): for each width of a context, a small net before to_k and one
 * before to_v. Published as pickles, which are read as data; ours and others' conversions are safetensors with their options as JSON.
 */
import { readFileSync } from "node:fs";
import { z } from "zod";
import { hyperNetworkKey } from "../../shared/adapters/hypernetwork-keys.ts";
import type { PickleDict } from "../../shared/adapters/pickle.ts";
import { parseJson } from "../../shared/json.ts";
import type { TensorF32, UnetBase } from "../components.ts";
import { ModelError } from "../weights/model-error.ts";
import { type HyperNetwork, type HyperNetworkActivation, type HyperNetworkLayer, hyperNetworkActivations } from "./adapter.ts";
import type { DiskFile } from "./content-hash.ts";
import { type TensorFile, withTensorFile } from "./tensor-file.ts";

const optionsSchema = z.looseObject({
  layer_structure: z.array(z.number().positive()).min(2).max(64).nullish(),
  activation_func: z.enum(hyperNetworkActivations).nullish(),
  is_layer_norm: z.boolean().nullish(),
  // What A1111 assumes of the first files, which lack it; ComfyUI assumes false.
  activate_output: z.boolean().nullish(),
  use_dropout: z.boolean().nullish(),
  last_layer_dropout: z.boolean().nullish(),
  dropout_structure: z.array(z.number().min(0)).nullish(),
});

export interface HyperNetworkOptions {
  structure: readonly number[];
  activation: HyperNetworkActivation;
  layerNorm: boolean;
  activateOutput: boolean;
  dropout: readonly number[] | null;
}

/** `options`: path of the JSON; absent: within the pickle, or the one JSON file beside the weights. Throws ModelError naming the key. */
export async function openHyperNetwork(files: readonly DiskFile[], hash: string, options?: string): Promise<HyperNetwork> {
  const weights = files.filter(({ path }) => !path.endsWith(".json"));
  const [only] = weights;
  if (!only || weights.length > 1) throw new ModelError(files[0]!.file, "files", "one file of weights", String(weights.length));
  const json = options ?? files.find(({ path }) => path.endsWith(".json"))?.file;
  return withTensorFile(only.file, file => {
    const settings = hyperNetworkOptions(json ?? file.path, json ? parseJson(readFileSync(json, "utf8")) : storedOptions(file));
    const nets = new Map<number, { key: readonly HyperNetworkLayer[]; value: readonly HyperNetworkLayer[] }>();
    const groups = groupKeys(file);
    for (const [width, { k, v }] of groups)
      nets.set(width, { key: readNet(file, k, width, settings), value: readNet(file, v, width, settings) });
    const layout = file.pickled ? "a1111" : "safetensors";
    return { kind: "hypernetwork", hash, report: { layout, used: [...file.tensors.keys()], skipped: [] }, nets };
  });
}

/** Throws ModelError where none of its nets is for a width that the base's attentions read: it would change nothing. */
export function requireReach(network: HyperNetwork, path: string, { config }: Pick<UnetBase, "config">): HyperNetwork {
  const attending = config.levels.filter(({ downAttends, upAttends }) => downAttends || upAttends);
  const widths = [...new Set([config.crossAttentionDim, ...attending.map(({ channels }) => channels), config.levels.at(-1)!.channels])];
  const own = [...network.nets.keys()];
  if (widths.some(width => network.nets.has(width))) return network;
  throw new ModelError(path, "widths", `some of ${widths.join(", ")}, as the base's attentions read`, own.join(", "));
}

function storedOptions({ pickled, metadata }: TensorFile): unknown {
  if (!pickled) return Object.fromEntries(Object.entries(metadata).map(([name, text]) => [name, parseJson(text) ?? text]));
  return Object.fromEntries(
    [...(pickled satisfies PickleDict)].filter(([, value]) => value === null || typeof value !== "object" || Array.isArray(value)),
  );
}

/** A1111's options, with its defaults where some are absent; `file` is for messages. Throws ModelError. */
export function hyperNetworkOptions(file: string, json: unknown): HyperNetworkOptions {
  const parsed = optionsSchema.safeParse(json);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw new ModelError(file, issue!.path.join(".") || "options", "a hypernetwork's options", issue!.message);
  }
  const { layer_structure, activation_func, is_layer_norm, activate_output, use_dropout, last_layer_dropout, dropout_structure } =
    parsed.data;
  const structure = layer_structure ?? [1, 2, 1];
  if (structure[0] !== 1 || structure.at(-1) !== 1) throw new ModelError(file, "layer_structure", "1 at both ends", `[${structure}]`);
  return {
    structure,
    activation: activation_func ?? "linear",
    layerNorm: is_layer_norm ?? false,
    activateOutput: activate_output ?? true,
    dropout: dropout_structure?.some(rate => rate > 0)
      ? dropout_structure
      : use_dropout
        ? defaultDropout(structure.length, last_layer_dropout ?? false)
        : null,
  };
}

/** A1111's `parse_dropout_structure`: whether a Dropout follows each linear layer. */
function defaultDropout(length: number, last: boolean): number[] {
  return [0, ...Array<number>(Math.max(0, length - 3)).fill(0.3), last ? 0.3 : 0, 0];
}

interface Net {
  /** Tensors by their name in the net. */
  tensors: Map<string, string>;
}

function groupKeys(file: TensorFile): Map<number, { k: Net; v: Net }> {
  const groups = new Map<number, { k: Net; v: Net }>();
  for (const key of file.tensors.keys()) {
    const found = hyperNetworkKey(key);
    if (!found) throw new ModelError(file.path, key, "<width>.<k or v>.linear.<n>.<weight or bias>", "an unknown name");
    const group = groups.get(found.width) ?? { k: { tensors: new Map() }, v: { tensors: new Map() } };
    group[found.net].tensors.set(found.name, key);
    groups.set(found.width, group);
  }
  if (groups.size === 0) throw new ModelError(file.path, "file", "nets by width", "no tensors");
  return groups;
}

/** Walks the modules that A1111 builds, counting each, so that every tensor is found under its number. */
function readNet(file: TensorFile, { tensors }: Net, width: number, options: HyperNetworkOptions): HyperNetworkLayer[] {
  const { structure, activation, layerNorm, activateOutput, dropout } = options;
  const layers: HyperNetworkLayer[] = [];
  const taken = new Set<string>();
  const old = tensors.has("linear1.weight");
  let number = 0;
  const take = (name: string, shape: readonly number[]): TensorF32 => {
    const key = tensors.get(name);
    if (key === undefined) throw new ModelError(file.path, `${width}.${name}`, `a tensor [${shape}]`, "none");
    const got = file.tensors.get(key)!.shape;
    if (String(got) !== String(shape)) throw new ModelError(file.path, key, `[${shape}]`, `[${got}]`);
    taken.add(name);
    return { data: file.read(key), shape };
  };
  const module = (type: "linear" | "layer-norm", shape: readonly number[]) => {
    const name = old ? `linear${number + 1}` : `linear.${number}`;
    layers.push({ type, weight: take(`${name}.weight`, shape), bias: take(`${name}.bias`, shape.slice(0, 1)) });
    number++;
  };
  const widths = structure.map(factor => Math.trunc(width * factor));
  for (let i = 0; i + 1 < widths.length; i++) {
    const [from, to] = [widths[i]!, widths[i + 1]!];
    const last = i + 2 === widths.length;
    module("linear", [to, from]);
    if (activation !== "linear" && (!last || activateOutput)) {
      layers.push({ type: "activation", name: activation });
      number++;
    }
    if (layerNorm) module("layer-norm", [to]);
    if (dropout && (dropout[i + 1] ?? 0) > 0) number++;
  }
  const unused = [...tensors.keys()].find(name => !taken.has(name));
  if (unused !== undefined)
    throw new ModelError(file.path, tensors.get(unused)!, "every key to be used", `an unused key of layers [${structure}]`);
  return layers;
}
