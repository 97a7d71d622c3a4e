import type { UploadView } from "../shared/upload.ts";
import type { CallOptions, Transport } from "./transport.ts";

/** Input pictures, and the face embeddings of FaceID adapters. */
export class Uploads {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** Uploads a file. Its `id` stands for it in requests; the same content has the same id. @throws AtelierProblem */
  create(file: Blob, options: CallOptions = {}): Promise<UploadView> {
    const headers = { "content-type": file.type || "application/x-safetensors" };
    return this.#transport.json("/v1/uploads", { ...options, method: "POST", file, headers });
  }

  /** An upload by its id `upl_…`. */
  get(id: string, options: CallOptions = {}): Promise<UploadView> {
    return this.#transport.json(`/v1/uploads/${encodeURIComponent(id)}`, options);
  }
}
