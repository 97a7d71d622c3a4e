import type { z } from "zod";
import type { TrainingView, trainingCreateSchema } from "../shared/training-api.ts";
import type { CallOptions, Transport } from "./transport.ts";

export type TrainingRequest = z.input<typeof trainingCreateSchema>;

export interface TrainingPage {
  readonly data: TrainingView[];
  readonly next_cursor: string | null;
}

/** Trainings. The events of `training.job.id` tell how one goes. */
export class Trainings {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** Accepts a training; it has not ended yet. @throws AtelierProblem */
  create(
    request: TrainingRequest,
    { idempotencyKey = crypto.randomUUID(), signal }: CallOptions & { idempotencyKey?: string } = {},
  ): Promise<TrainingView> {
    const headers = { "idempotency-key": idempotencyKey };
    return this.#transport.json("/v1/trainings", { method: "POST", json: request, headers, ...(signal && { signal }) });
  }

  /** A page of trainings, newest first; `cursor` is the `next_cursor` of the page before. */
  list({ limit, cursor, ...options }: CallOptions & { limit?: number; cursor?: string } = {}): Promise<TrainingPage> {
    const query = new URLSearchParams({ ...(limit !== undefined && { limit: String(limit) }), ...(cursor !== undefined && { cursor }) });
    return this.#transport.json(`/v1/trainings?${query}`, options);
  }

  /** A training by its id `trn_…`. */
  get(id: string, options: CallOptions = {}): Promise<TrainingView> {
    return this.#transport.json(`/v1/trainings/${encodeURIComponent(id)}`, options);
  }

  /** Cancels a training; its last checkpoint stays among its files for a day. */
  cancel(id: string, options: CallOptions = {}): Promise<TrainingView> {
    return this.#transport.json(`/v1/trainings/${encodeURIComponent(id)}/cancel`, { ...options, method: "POST" });
  }

  /** A file that the training made, by its path. */
  async file(id: string, path: string, options: CallOptions = {}): Promise<Blob> {
    return (await this.#transport.send(`/v1/trainings/${encodeURIComponent(id)}/files/${path}`, options)).blob();
  }

  /** Deletes a training and its files; adapters that it made stay. */
  async delete(id: string, options: CallOptions = {}): Promise<void> {
    await this.#transport.send(`/v1/trainings/${encodeURIComponent(id)}`, { ...options, method: "DELETE" });
  }
}
