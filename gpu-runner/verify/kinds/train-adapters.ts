/** The cases of trainings of hypernetworks, ControlNets, IP-Adapters and predicted LoRAs. */
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { parseJson } from "../../../shared/json.ts";
import { AdapterWeights } from "../../adapters/adapter-weights.ts";
import { controlNetConfig } from "../../adapters/controlnet/config.ts";
import { hyperNetworkOptions } from "../../adapters/hypernetwork.ts";
import { ipProjectionConfig } from "../../adapters/ip-adapter/variant.ts";
import { readTensorFile } from "../../adapters/read-tensors.ts";
import { newControlNetConfig, openControlNetStep } from "../../train/methods/controlnet.ts";
import { shapeOfNet } from "../../train/methods/hyper-lora/net.ts";
import { openHyperLoraStep } from "../../train/methods/hyper-lora.ts";
import { openHyperNetworkStep } from "../../train/methods/hypernetwork.ts";
import { openIpAdapterStep } from "../../train/methods/ip-adapter.ts";
import { startFrom } from "../../train/methods/lora.ts";
import { at } from "./train-batches.ts";
import type { CaseArgs, CaseStep } from "./train-methods.ts";

const paramsSchema = z.looseObject({
  options: z.string().optional(),
  resamplerHeads: z.int().optional(),
  conditioningScale: z.array(z.number()).optional(),
});

function adapterPath({ goldenCase, context }: CaseArgs): string {
  const file = goldenCase.adapters?.[0]?.file;
  if (file === undefined) throw new Error(`case ${goldenCase.name}: adapters: expected the start values, got none`);
  return context.path(file);
}

const sameName = (name: string): string => name;

export async function openHyperNetworkCase(args: CaseArgs): Promise<CaseStep> {
  const { options } = paramsSchema.parse(args.params);
  if (options === undefined) throw new Error(`case ${args.goldenCase.name}: params.options: expected a hypernetwork's options, got none`);
  const file = args.context.path(options);
  const shape = hyperNetworkOptions(file, parseJson(readFileSync(file, "utf8")));
  const start = await readTensorFile(adapterPath(args));
  const widths = [...new Set([...start.keys()].map(name => Number(name.split(".")[0])))];
  const step = openHyperNetworkStep(args.model, { ...shape, widths }, 0, args.options);
  startFrom(step.tensors, start);
  return { step, caseName: sameName };
}

export async function openControlNetCase(args: CaseArgs): Promise<CaseStep> {
  const path = adapterPath(args);
  const folder = statSync(path).isDirectory();
  const file = join(path, "config.json");
  const config = folder ? controlNetConfig(file, parseJson(readFileSync(file, "utf8"))) : newControlNetConfig(args.model);
  const start = await readTensorFile(folder ? join(path, "diffusion_pytorch_model.safetensors") : path);
  const { conditioningScale } = paramsSchema.parse(args.params);
  const step = openControlNetStep(args.model, { config, conditioningScale: conditioningScale?.[0] ?? 1, seed: 0 }, args.options);
  startFrom(step.tensors, start);
  return { step, caseName: sameName };
}

export async function openIpAdapterCase(args: CaseArgs): Promise<CaseStep> {
  const path = adapterPath(args);
  const weights = await AdapterWeights.open(path, [path], { cacheDir: args.options.cacheDir });
  const config = ipProjectionConfig(weights, paramsSchema.parse(args.params).resamplerHeads ?? null);
  if (config.variant !== "base" && config.variant !== "plus")
    throw new Error(`case ${args.goldenCase.name}: expected an IP-Adapter of base or plus, got ${config.variant}`);
  const step = openIpAdapterStep(args.model, config, 0, args.options);
  startFrom(step.tensors, await readTensorFile(path));
  return { step, caseName: sameName };
}

export async function openHyperLoraCase(args: CaseArgs): Promise<CaseStep> {
  const start = await readTensorFile(adapterPath(args));
  const step = openHyperLoraStep(args.model, shapeOfNet(start), 0, args.options);
  step.startFrom(start);
  const read = (name: string, index: number | null): number[] => Array.from(at(args.context.input(name), index).data);
  const extendBatch: CaseStep["extendBatch"] = (batch, index) => {
    const { shape } = batch.sample;
    const references = "references" in args.goldenCase.inputs && {
      latents: { data: Float32Array.from(read("references", index)), shape },
      used: read("uses_reference", index).map(value => value !== 0),
      weights: batch.timesteps.map((_, __, { length }) => 1 / length),
    };
    return { ...batch, concepts: read("concepts", index), references: references || null };
  };
  return { step, caseName: sameName, extendBatch };
}
