/** Every method's result files: one row a method. */
import { copyFileSync, mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import type { AdapterKind } from "../../../shared/adapter.ts";
import { hyperLoraNet, type TrainingMethod, type TrainingRequest, type TrainingResult } from "../../../shared/training.ts";
import type { ModelDescription } from "../../weights/describe.ts";
import type { Companion } from "../context.ts";
import { conceptsKey } from "../methods/hyper-lora/open.ts";
import { type BaseWeights, extractLora, type FullResult, writeFullDifference } from "./dreambooth.ts";
import { type LoraResult, loraLayouts } from "./lora.ts";
import { type ResultTensor, writeTensors } from "./result.ts";
import { writeInversion } from "./textual-inversion.ts";

export interface ExportArgs {
  /** Existing; files go below it. */
  folder: string;
  request: TrainingRequest;
  description: ModelDescription;
  tensors: readonly ResultTensor[];
  /** DreamBooth: the base's own weights by the tensors' names. */
  base: BaseWeights | null;
  /** hyper-lora: what it predicts for each concept, in their order. */
  predicted: readonly (readonly ResultTensor[])[] | null;
  /** IP-Adapter: the files of its image encoder. */
  companions?: readonly Companion[];
  /** `ss_…` of sd-scripts. */
  metadata: Readonly<Record<string, string>>;
}

/** Paths below the folder. What is registered stands in `adapters`, further layouts of the same beside it. */
export interface Exported {
  kind: AdapterKind;
  paths: string[];
  adapters: TrainingResult["adapters"];
}

const exporters = {
  lora: args => {
    const { settings } = args.request;
    if (settings.method !== "lora") throw new Error(`expected settings of a LoRA, got ${settings.method}`);
    return loraFiles(args, args.tensors, settings);
  },
  dreambooth: args => {
    const { settings } = args.request;
    if (settings.method !== "dreambooth" || !args.base) throw new Error("expected DreamBooth's settings and the base's weights");
    const full: FullResult = { trained: args.tensors, base: args.base, hasTwoTextEncoders: hasTwo(args), metadata: args.metadata };
    if (settings.extract_rank === null) return { kind: "lora", ...registered(writeFullDifference(args.folder, full)) };
    return loraLayoutFiles(args.folder, extractLora(full, settings.extract_rank));
  },
  "textual-inversion": args => {
    const { settings, concepts } = args.request;
    if (settings.method !== "textual-inversion") throw new Error(`expected settings of an inversion, got ${settings.method}`);
    const written = concepts.map(({ token }, concept) => {
      const suffix = concepts.length === 1 ? null : fileName(token, concept);
      const rows = args.tensors.map(({ name, shape, data }): ResultTensor => {
        const width = shape.at(-1)!;
        const size = settings.vectors * width;
        return { name, shape: [settings.vectors, width], data: data.subarray(concept * size, (concept + 1) * size) };
      });
      const { a1111, diffusers } = writeInversion(args.folder, fileName(token, concept), token, rows);
      return { suffix, files: a1111, further: diffusers };
    });
    return {
      kind: "textual-inversion",
      paths: written.flatMap(({ files, further }) => [...files, ...further]),
      adapters: written.map(({ suffix, files }) => ({ suffix, files })),
    };
  },
  hypernetwork: args => {
    const { settings } = args.request;
    if (settings.method !== "hypernetwork") throw new Error(`expected settings of a hypernetwork, got ${settings.method}`);
    // A1111 itself reads pickles alone, which are not written: these are its names and options in safetensors.
    const { layer_structure, activation, layer_norm, activate_output } = settings;
    const options = { layer_structure, activation_func: activation, is_layer_norm: layer_norm, activate_output, use_dropout: false };
    const metadata = Object.fromEntries(Object.entries(options).map(([name, value]) => [name, JSON.stringify(value)]));
    writeTensors(args.folder, "a1111/hypernetwork.safetensors", args.tensors, metadata);
    return { kind: "hypernetwork", ...registered(["a1111/hypernetwork.safetensors"]) };
  },
  "hyper-lora": args => {
    const { settings, concepts } = args.request;
    if (settings.method !== "hyper-lora" || !args.predicted) throw new Error("expected hyper-lora's settings and its predictions");
    const { rank } = settings;
    const tokens = concepts.map(({ token }) => token);
    writeTensors(args.folder, hyperLoraNet, args.tensors, { ...args.metadata, [conceptsKey]: JSON.stringify(tokens) });
    const written = args.predicted.map((tensors, concept) => {
      const suffix = fileName(concepts[concept]!.token, concept);
      const result = { tensors, rank, alpha: rank, hasTwoTextEncoders: hasTwo(args), metadata: args.metadata };
      const files = loraLayouts.kohya(`${args.folder}/${suffix}`, result).map(path => `${suffix}/${path}`);
      return { suffix: concepts.length === 1 ? null : suffix, files };
    });
    return { kind: "lora", paths: [hyperLoraNet, ...written.flatMap(({ files }) => files)], adapters: written };
  },
  "ip-adapter": args => {
    writeTensors(args.folder, "ip-adapter/ip_adapter.safetensors", args.tensors);
    // Where a published adapter has its encoder, too: the adapter's own file comes first.
    const beside = (args.companions ?? []).map(({ from, path }) => copyBeside(args.folder, from, `ip-adapter/${path}`));
    return { kind: "ip-adapter", ...registered(["ip-adapter/ip_adapter.safetensors", ...beside]) };
  },
  controlnet: args => {
    writeTensors(args.folder, "controlnet/diffusion_pytorch_model.safetensors", args.tensors);
    return { kind: "controlnet", ...registered(["controlnet/diffusion_pytorch_model.safetensors"]) };
  },
  evaluation: ({ request: { settings } }) => {
    if (settings.method !== "evaluation") throw new Error(`expected settings of an evaluation, got ${settings.method}`);
    return { kind: settings.kind, paths: [], adapters: [] };
  },
} satisfies Record<TrainingMethod, (args: ExportArgs) => Exported>;

export function exportResult(args: ExportArgs): Exported {
  return exporters[args.request.settings.method](args);
}

function copyBeside(folder: string, from: string, path: string): string {
  mkdirSync(dirname(join(folder, path)), { recursive: true });
  copyFileSync(from, join(folder, path));
  return path;
}

function hasTwo({ description }: ExportArgs): boolean {
  return description.textEncoders.length > 1;
}

function registered(files: readonly string[]): Pick<Exported, "paths" | "adapters"> {
  // Apart: what else a training writes joins `paths` later.
  return { paths: [...files], adapters: [{ suffix: null, files: [...files] }] };
}

function loraFiles(args: ExportArgs, tensors: readonly ResultTensor[], { rank, alpha }: { rank: number; alpha: number }): Exported {
  return loraLayoutFiles(args.folder, { tensors, rank, alpha, hasTwoTextEncoders: hasTwo(args), metadata: args.metadata });
}

/** Kohya's is the one that is registered: every product reads it. */
function loraLayoutFiles(folder: string, result: LoraResult): Exported {
  const files = loraLayouts.kohya(folder, result);
  const further = [...loraLayouts.diffusers(folder, result), ...loraLayouts.peft(folder, result)];
  return { kind: "lora", paths: [...files, ...further], adapters: [{ suffix: null, files }] };
}

/** A token as a file's name. */
function fileName(token: string, index: number): string {
  const name = token.replaceAll(/[^A-Za-z0-9_-]/g, "").slice(0, 36);
  return name === "" ? `concept${index + 1}` : name;
}
