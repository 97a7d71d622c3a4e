/** Every kind of adapter by how it is opened: one row a kind. This folder is the one place that knows what a kind is. */
import type { AdapterKind } from "../../shared/adapter.ts";
import type { DiffusionModel } from "../components.ts";
import type { HyperNetwork, LoraAdapter, TextualInversion } from "./adapter.ts";
import { adapterDiskFiles } from "./content-hash.ts";
import { type ControlNet, openControlNet } from "./controlnet/controlnet.ts";
import { openHyperNetwork, requireReach } from "./hypernetwork.ts";
import { type IpAdapter, openIpAdapter } from "./ip-adapter/ip-adapter.ts";
import { openLora } from "./lora/lora.ts";
import type { OpenAdapterOptions } from "./open-options.ts";
import { openT2iAdapter, type T2iAdapter } from "./t2i-adapter/t2i-adapter.ts";
import { openTextualInversion } from "./textual-inversion.ts";

/** What each kind is once opened for a base. Those with a `release` hold sessions. */
export interface OpenedAdapters {
  lora: LoraAdapter;
  "textual-inversion": TextualInversion;
  hypernetwork: HyperNetwork;
  "ip-adapter": IpAdapter;
  controlnet: ControlNet;
  "t2i-adapter": T2iAdapter;
}

export interface OpenAdapterArgs {
  /** Content hash, `sha256:<hex>`, of what lies at `path`: it was checked when the files were fetched. */
  hash: string;
  /** Absolute path of the file, or of the folder where they are several. */
  path: string;
  base: DiffusionModel;
  options: OpenAdapterOptions;
}

/** Each throws ModelError naming key, expected and got where the files are not of the kind or do not fit the base. */
const openers: { readonly [K in AdapterKind]: (args: OpenAdapterArgs) => Promise<OpenedAdapters[K]> } = {
  lora: ({ hash, path, base }) => openLora(adapterDiskFiles(path), hash, base.weightShapes),
  "textual-inversion": ({ hash, path, base }) => openTextualInversion(adapterDiskFiles(path), hash, base.weightShapes),
  hypernetwork: async ({ hash, path, base }) => requireReach(await openHyperNetwork(adapterDiskFiles(path), hash), path, base.unet),
  "ip-adapter": ({ path, base, options }) => openIpAdapter(path, base.unet, options),
  controlnet: ({ path, base, options }) => openControlNet(path, base.unet, options),
  "t2i-adapter": ({ path, base, options }) => openT2iAdapter(path, base.unet, options),
};

export function openAdapter<K extends AdapterKind>(kind: K, args: OpenAdapterArgs): Promise<OpenedAdapters[K]> {
  return openers[kind](args);
}
