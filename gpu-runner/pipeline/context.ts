/** What a picture needs from outside, and what is done with it on the way; the model thread fills it in. */
import type { AdapterKind } from "../../shared/adapter.ts";
import type { ProgressReport } from "../../shared/protocol.ts";
import type { OpenedAdapters } from "../adapters/registry.ts";
import type { DiffusionModel } from "../components.ts";
import type { ClipTokenizer } from "../tokenizer/clip.ts";
import type { PreviewMap } from "./preview.ts";

/** A model with all that pictures need besides it. */
export interface PictureModel {
  model: DiffusionModel;
  /** One per text encoder, in their order. */
  tokenizers: readonly ClipTokenizer[];
  previewMap: PreviewMap;
}

/** Opens adapters, and keeps those that were used lately: an `AdapterStore`. */
export interface AdapterSource {
  /** @param path of the adapter's file or folder. Throws ModelError where it does not fit the base. */
  open<K extends AdapterKind>(kind: K, hash: string, path: string, base: DiffusionModel): Promise<OpenedAdapters[K]>;
}

export interface PictureContext {
  inputs: {
    /** Absolute path of an input file. Throws where it was not fetched. */
    file(sha256: string): string;
    /** Absolute path of an adapter's file, or folder where it is several. Throws where it was not fetched. */
    adapter(hash: string): string;
  };
  adapters: AdapterSource;
  /** A loaded model: the request's own, and its refiner. */
  model(hash: string): Promise<PictureModel>;
}

/** How one picture of a batch is followed. */
export interface PictureRun {
  /** Called after every step; its report holds a preview at most every `previewMs`. */
  onProgress?: (report: ProgressReport) => void;
  previewMs?: number;
}

/** The file of a picture, and what is said of it. */
export interface Picture {
  bytes: Uint8Array<ArrayBuffer>;
  mediaType: string;
  width: number;
  height: number;
  sha256: string;
}
