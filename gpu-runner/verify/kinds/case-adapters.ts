/** The adapters of a case over a whole run. */
import { adapterKinds } from "../../../shared/adapter.ts";
import { adapterDiskFiles, hashAdapterFiles } from "../../adapters/content-hash.ts";
import { openControlNet } from "../../adapters/controlnet/controlnet.ts";
import { openIpAdapter } from "../../adapters/ip-adapter/ip-adapter.ts";
import { openLora } from "../../adapters/lora/lora.ts";
import { openT2iAdapter } from "../../adapters/t2i-adapter/t2i-adapter.ts";
import { openTextualInversion } from "../../adapters/textual-inversion.ts";
import type { ControlNetUse, ImagePromptUse } from "../../pipeline/item-adapters.ts";
import { type Collected, emptyCollection } from "../../pipeline/resolve-adapters.ts";
import { float32Input, type GoldenAdapter, type GoldenCase, type VerifyContext } from "../kind.ts";

export interface AdapterParams {
  /** Of an IP-Adapter that brings none. */
  imageEncoder?: string | undefined;
  /** Of each ControlNet, in the place of its weight. */
  conditioningScale: readonly number[];
}

/** Those of the case, into what an item is given; `nets` are to be released. */
export async function openCaseAdapters({ adapters = [] }: GoldenCase, params: AdapterParams, context: VerifyContext) {
  const into = emptyCollection();
  const nets: { release(): Promise<void> }[] = [];
  for (const adapter of adapters) await open(adapter, into, nets, params, context);
  return { into, nets };
}

async function open(
  { file, kind, weight, token, start = 0, end = 1 }: GoldenAdapter,
  into: Collected,
  nets: { release(): Promise<void> }[],
  params: AdapterParams,
  context: VerifyContext,
): Promise<void> {
  const { weightShapes, unet } = await context.model();
  const path = context.path(file);
  const options = { provider: "cpu", cacheDir: context.cacheDir } as const;
  const files = adapterDiskFiles(path);
  switch (adapterKinds.find(known => known === kind)) {
    case "lora": {
      const use = { adapter: await openLora(files, await hashAdapterFiles(files), weightShapes), weight, dora: null };
      into.loras.push({ ...use, start, end });
      into.textLoras.push(use);
      return;
    }
    case "textual-inversion": {
      const inversion = await openTextualInversion(files, await hashAdapterFiles(files), weightShapes);
      into.words.push({ word: token ?? inversion.token ?? "", inversion });
      return;
    }
    case "ip-adapter": {
      const { imageEncoder } = params;
      const adapter = await openIpAdapter(path, unet, { ...options, ...(imageEncoder && { imageEncoder: context.path(imageEncoder) }) });
      nets.push(adapter);
      const { tokens, unconditional } = await adapter.tokens([{ pixelValues: float32Input(context, "pixel_values"), weight: 1 }]);
      const use: ImagePromptUse = { layers: adapter.layers, tokens, unconditionalTokens: unconditional, weight, start, end };
      into.imagePrompts.push(use);
      return;
    }
    case "controlnet": {
      const net = await openControlNet(path, unet, options);
      nets.push(net);
      const index = into.controlNets.length;
      const map = float32Input(context, index === 0 ? "controlnet_cond" : `controlnet_cond_${index + 1}`);
      const scale = params.conditioningScale[index] ?? weight;
      const use: ControlNetUse = { net, map, weight: scale, guessMode: false, globalPool: net.globalPool, control: null, start, end };
      into.controlNets.push(use);
      return;
    }
    case "t2i-adapter": {
      const adapter = await openT2iAdapter(path, unet, options);
      nets.push(adapter);
      into.t2iAdapters.push({ features: await adapter.features(float32Input(context, "t2i_cond")), weight, start, end });
      return;
    }
    default:
      throw new Error(`adapters: expected lora, textual-inversion, ip-adapter, controlnet or t2i-adapter, got ${kind}`);
  }
}
