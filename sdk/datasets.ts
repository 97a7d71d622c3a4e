import type { DatasetItemPatch, DatasetItemView, DatasetSummary, DatasetView } from "../shared/training-api.ts";
import type { CallOptions, Transport } from "./transport.ts";

/** A picture of a new dataset and what is said of it; mask and condition are pictures, too. */
export interface NewDatasetItem {
  readonly file: File;
  readonly caption?: string;
  readonly split?: DatasetItemView["split"];
  readonly concept?: number;
  readonly mask?: File;
  readonly condition?: File;
}

export interface DatasetPage {
  readonly data: DatasetSummary[];
  readonly next_cursor: string | null;
}

/** Pictures with captions that something is learned from. */
export class Datasets {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** Makes a dataset of pictures, up to 24 MiB in all. @throws AtelierProblem */
  create(
    { name, items }: { name: string; items: readonly NewDatasetItem[] },
    { idempotencyKey = crypto.randomUUID(), signal }: CallOptions & { idempotencyKey?: string } = {},
  ): Promise<DatasetView> {
    const form = new FormData();
    form.set("name", name);
    const lines = items.map(({ file, mask, condition, ...said }, i) => {
      // Numbered, since people's files of different folders may have the same name.
      const sent = (picture: File | undefined, role: string) => {
        if (!picture) return undefined;
        form.append("file", picture, `${i}-${role}`);
        return `${i}-${role}`;
      };
      return { ...said, file_name: sent(file, "picture"), mask: sent(mask, "mask"), condition: sent(condition, "condition") };
    });
    form.set("metadata", lines.map(line => JSON.stringify(line)).join("\n"));
    return this.#post(form, idempotencyKey, signal);
  }

  /** Makes a dataset of a zip with pictures and their captions. @throws AtelierProblem */
  createFromZip(
    { name, zip }: { name: string; zip: Blob },
    { idempotencyKey = crypto.randomUUID(), signal }: CallOptions & { idempotencyKey?: string } = {},
  ): Promise<DatasetView> {
    const form = new FormData();
    form.set("name", name);
    form.set("zip", zip, "dataset.zip");
    return this.#post(form, idempotencyKey, signal);
  }

  /** A page of datasets, newest first; `cursor` is the `next_cursor` of the page before. */
  list({ limit, cursor, ...options }: CallOptions & { limit?: number; cursor?: string } = {}): Promise<DatasetPage> {
    const query = new URLSearchParams({ ...(limit !== undefined && { limit: String(limit) }), ...(cursor !== undefined && { cursor }) });
    return this.#transport.json(`/v1/datasets?${query}`, options);
  }

  /** A dataset by its id `dst_…`. */
  get(id: string, options: CallOptions = {}): Promise<DatasetView> {
    return this.#transport.json(`/v1/datasets/${encodeURIComponent(id)}`, options);
  }

  /** The file of a picture, mask or condition of a dataset. */
  async file(id: string, sha256: string, options: CallOptions = {}): Promise<Blob> {
    return (await this.#transport.send(`/v1/datasets/${encodeURIComponent(id)}/files/${sha256}`, options)).blob();
  }

  /** Changes what is said of a picture; what is absent stays. */
  change(id: string, sha256: string, changes: DatasetItemPatch, options: CallOptions = {}): Promise<DatasetItemView> {
    const path = `/v1/datasets/${encodeURIComponent(id)}/items/${sha256}`;
    return this.#transport.json(path, { ...options, method: "PATCH", json: changes });
  }

  /** Deletes a dataset. Trainings that were accepted go on. */
  async delete(id: string, options: CallOptions = {}): Promise<void> {
    await this.#transport.send(`/v1/datasets/${encodeURIComponent(id)}`, { ...options, method: "DELETE" });
  }

  #post(form: FormData, idempotencyKey: string, signal: AbortSignal | undefined): Promise<DatasetView> {
    const headers = { "idempotency-key": idempotencyKey };
    return this.#transport.json("/v1/datasets", { method: "POST", form, headers, ...(signal && { signal }) });
  }
}
