import type { AdapterView } from "../shared/adapter-resource.ts";
import type { Problem } from "../shared/errors.ts";
import { type CallOptions, sha256Of, type Transport } from "./transport.ts";

export interface NewAdapter {
  readonly name: string;
  /** Each with the path that it had in its folder; a `File` alone keeps its name. */
  readonly files: readonly (File | { readonly path: string; readonly file: Blob; readonly sha256?: string })[];
  readonly visibility?: AdapterView["visibility"];
  /** Refused unless the files are of this kind. */
  readonly kind?: AdapterView["kind"];
  /** Of a textual inversion: the word for it in prompts. */
  readonly token?: string;
}

export interface AdapterPage {
  readonly data: AdapterView[];
  readonly next_cursor: string | null;
}

/** LoRAs, textual inversions, hypernetworks, IP-Adapters, ControlNets and T2I-Adapters. */
export class Adapters {
  readonly #transport: Transport;
  readonly #refusal: (problem: Problem) => Error;

  constructor(transport: Transport, refusal: (problem: Problem) => Error) {
    this.#transport = transport;
    this.#refusal = refusal;
  }

  /**
   * Uploads an adapter and resolves when it is ready. Files whose content is there already are not sent.
   * @throws AtelierProblem, `adapter_refused` with the reasons where the files are no adapter that is served
   */
  async create(
    { files, ...stated }: NewAdapter,
    { idempotencyKey = crypto.randomUUID(), signal }: CallOptions & { idempotencyKey?: string } = {},
  ): Promise<AdapterView> {
    const named = files.map(entry => ("path" in entry ? entry : { path: entry.name, file: entry }));
    const described = await Promise.all(
      named.map(async entry => ({ path: entry.path, bytes: entry.file.size, sha256: entry.sha256 ?? (await sha256Of(entry.file)) })),
    );
    const options = signal && { signal };
    const opened = await this.#transport.json<AdapterView>("/v1/adapters", {
      ...options,
      method: "POST",
      json: { ...stated, files: described },
      headers: { "idempotency-key": idempotencyKey },
    });
    for (const { sha256, upload } of opened.files) {
      // By content: the service calls files without the folder that all of them are in.
      const file = named[described.findIndex(entry => entry.sha256 === sha256)]?.file;
      if (upload && file) await this.#transport.send(upload.url, { ...options, method: upload.method, file, headers: upload.headers });
    }
    const adapter = opened.status === "uploading" ? await this.get(opened.id, options) : opened;
    if (adapter.status !== "refused") return adapter;
    const problem = { type: "urn:atelier:error:adapter_refused", title: "The files are no adapter that can be used.", status: 422 };
    throw this.#refusal({ ...problem, code: "adapter_refused", detail: adapter.reasons.join("; ") });
  }

  /** A page of adapters, own and public, newest first; `cursor` is the `next_cursor` of the page before. */
  list({ limit, cursor, ...options }: CallOptions & { limit?: number; cursor?: string } = {}): Promise<AdapterPage> {
    const query = new URLSearchParams({ ...(limit !== undefined && { limit: String(limit) }), ...(cursor !== undefined && { cursor }) });
    return this.#transport.json(`/v1/adapters?${query}`, options);
  }

  /** An adapter by its id `adp_…`. */
  get(id: string, options: CallOptions = {}): Promise<AdapterView> {
    return this.#transport.json(`/v1/adapters/${encodeURIComponent(id)}`, options);
  }

  /** Deletes an adapter; what was made with it leaves the cache. */
  async delete(id: string, options: CallOptions = {}): Promise<void> {
    await this.#transport.send(`/v1/adapters/${encodeURIComponent(id)}`, { ...options, method: "DELETE" });
  }
}
