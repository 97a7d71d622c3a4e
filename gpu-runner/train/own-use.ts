/** How a training's own adapter is applied in the pictures that it makes. */
import { join } from "node:path";
import type { AdapterKind } from "../../shared/adapter.ts";
import type { AdapterUse } from "../../shared/picture.ts";
import type { TrainingRequest } from "../../shared/training.ts";
import { adapterDiskFiles, hashAdapterFiles } from "../adapters/content-hash.ts";
import type { OwnAdapter } from "./own-pictures.ts";

const always = { weight: 1, start: 0, end: 1 } as const;

/** @param files paths below the folder; the first one is the adapter's @param concept whose adapter it is */
export async function ownUse(
  request: TrainingRequest,
  kind: AdapterKind,
  folder: string,
  files: readonly string[],
  concept: number,
): Promise<OwnAdapter> {
  const path = join(folder, files[0]!);
  return useOf(request, kind, path, await hashAdapterFiles(adapterDiskFiles(path)), concept);
}

/** @param path of the adapter's file or folder @param adapter its content hash */
export function useOf(request: TrainingRequest, kind: AdapterKind, path: string, adapter: string, concept: number): OwnAdapter {
  // What reads a picture is shown one of the dataset's.
  const [shown] = request.items;
  const image = shown!.condition ?? shown!.sha256;
  const uses = {
    lora: () => ({ kind: "lora", adapter, ...always, text_encoder_weight: 1, dora: null }),
    "textual-inversion": () => ({ kind: "textual-inversion", adapter, token: request.concepts[concept]!.token }),
    hypernetwork: () => ({ kind: "hypernetwork", adapter, ...always }),
    "ip-adapter": () => ({
      kind: "ip-adapter",
      adapter,
      ...always,
      images: [{ image, weight: 1 }],
      embedding: null,
      mask: null,
      shortcut: false,
    }),
    controlnet: () => ({
      kind: "controlnet",
      adapter,
      ...always,
      image,
      preprocess: "none",
      guess_mode: false,
      global_pool: false,
      control_mode: null,
    }),
    "t2i-adapter": () => ({ kind: "t2i-adapter", adapter, ...always, image, preprocess: "none" }),
  } satisfies { [K in AdapterKind]: () => Extract<AdapterUse, { kind: K }> };
  return { path, use: uses[kind]() };
}
