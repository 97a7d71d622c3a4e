/** What a study asks of a running product: only what any client may. */
import { setTimeout as sleep } from "node:timers/promises";
import { adapterViewSchema } from "../shared/adapter-resource.ts";
import { generationViewSchema, isTerminal } from "../shared/job.ts";
import { datasetViewSchema, type TrainingView, trainingViewSchema } from "../shared/training-api.ts";
import type { StudyPicture } from "./concepts.ts";

export interface NamedFile {
  path: string;
  bytes: Uint8Array;
}

export class StudyClient {
  readonly #url: string;
  readonly #key: string;
  constructor({ url, key }: { url: string; key: string }) {
    this.#url = url;
    this.#key = key;
  }

  /** @returns the dataset's id */
  async dataset(name: string, pictures: readonly StudyPicture[]): Promise<string> {
    const form = new FormData();
    form.set("name", name);
    const lines = pictures.map(({ file, png, caption, split, concept, condition }) => {
      form.append("file", new Blob([new Uint8Array(png)]), file);
      const conditionFile = condition && `condition-${file}`;
      if (condition && conditionFile) form.append("file", new Blob([new Uint8Array(condition)]), conditionFile);
      return JSON.stringify({ file_name: file, caption, split, concept, ...(conditionFile && { condition: conditionFile }) });
    });
    form.set("metadata", lines.join("\n"));
    return datasetViewSchema.parse(await this.#json("/v1/datasets", { method: "POST", body: form })).id;
  }

  /** Trains to the end. @throws with the training's error where it does not succeed */
  async train(body: object): Promise<TrainingView> {
    let view = trainingViewSchema.parse(await this.#json("/v1/trainings", { method: "POST", body: JSON.stringify(body) }));
    while (!isTerminal(view.status)) {
      await sleep(1000);
      view = trainingViewSchema.parse(await this.#json(`/v1/trainings/${view.id}`));
    }
    if (view.status !== "succeeded" || !view.report)
      throw new Error(`${view.name}: the training ended as ${view.status}: ${view.error?.detail ?? view.error?.title ?? "no report"}`);
    return view;
  }

  /** Every file of a training's result. */
  async files({ name, files }: TrainingView): Promise<NamedFile[]> {
    const contents: NamedFile[] = [];
    for (const { path, url } of files) {
      if (!url) throw new Error(`${name}: expected a URL for ${path}`);
      contents.push({ path, bytes: new Uint8Array(await (await this.#call(url)).arrayBuffer()) });
    }
    return contents;
  }

  /** @returns what generations and trainings name it by */
  async upload(name: string, files: readonly NamedFile[], token: string | null): Promise<string> {
    const form = new FormData();
    form.set("name", name);
    if (token) form.set("token", token);
    for (const { path, bytes } of files) form.append("file", new Blob([new Uint8Array(bytes)]), path);
    return adapterViewSchema.parse(await this.#json("/v1/adapters", { method: "POST", body: form })).name;
  }

  /** Draws one picture. @returns its PNG */
  async draw(body: object): Promise<Uint8Array> {
    const asked = { model: "pocket", num_images: 1, ...body };
    let view = generationViewSchema.parse(
      await this.#json("/v1/generations", { method: "POST", body: JSON.stringify(asked), headers: { Prefer: "wait=60" } }),
    );
    while (!isTerminal(view.status)) {
      await sleep(500);
      view = generationViewSchema.parse(await this.#json(`/v1/generations/${view.id}`));
    }
    const url = view.pictures[0]?.url;
    if (!url) throw new Error(`a generation ended as ${view.status}: ${view.error?.detail ?? view.error?.title ?? "no picture"}`);
    return new Uint8Array(await (await this.#call(url)).arrayBuffer());
  }

  async #json(path: string, init: RequestInit = {}): Promise<unknown> {
    return (await this.#call(path, init)).json();
  }

  async #call(path: string, init: RequestInit = {}): Promise<Response> {
    const type = typeof init.body === "string" ? { "Content-Type": "application/json" } : {};
    const headers = { Authorization: `Bearer ${this.#key}`, ...type, ...init.headers };
    const answer = await fetch(new URL(path, this.#url), { ...init, headers });
    if (!answer.ok) throw new Error(`${init.method ?? "GET"} ${path}: HTTP ${answer.status}: ${await answer.text()}`);
    return answer;
  }
}
