/** The models of this machine: fetched from where the operator says, and listed in the registry file that its runners watch. */
import { existsSync, mkdirSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { SingleBar } from "cli-progress";
import { type RegisteredModel, readModelRegistry } from "../gpu-runner/model-registry.ts";
import { downloadModel, HubError, parseHubId } from "./hub.ts";

/** A registry with the names that the edge knows the models by; runners ignore these. */
type NamedModel = RegisteredModel & { name: string };

export class ModelStore {
  readonly #folder: string;
  readonly #registry: string;

  /** @param stateFolder holds what is downloaded, and the registry unless ATELIER_MODEL_REGISTRY names another */
  constructor(stateFolder: string, registry = process.env.ATELIER_MODEL_REGISTRY) {
    this.#folder = join(resolve(stateFolder), "models");
    this.#registry = resolve(registry ?? join(stateFolder, "models.json"));
  }

  /**
   * Where a model lies on this machine: a folder or file that is here, or one that is downloaded from the hub first.
   * @throws HubError
   */
  async locate(model: string, options: { fp16?: boolean } = {}): Promise<string> {
    if (existsSync(model)) return resolve(model);
    const hubModel = parseHubId(model);
    if (!hubModel) throw new HubError(`${model} is neither a file or folder here nor a hub id of the form owner/name.`);
    const bar = progressBar();
    try {
      return await downloadModel(hubModel, {
        folder: this.#folder,
        ...(options.fp16 && { fp16: true }),
        ...(process.env.HF_ENDPOINT && { hubUrl: process.env.HF_ENDPOINT }),
        ...(process.env.HF_TOKEN && { accessToken: process.env.HF_TOKEN }),
        onProgress: bar.update,
      });
    } finally {
      bar.stop();
    }
  }

  list(): readonly RegisteredModel[] {
    return readModelRegistry(this.#registry);
  }

  /** Tells this machine's runners of a model, which serve it without a restart. */
  add(model: NamedModel): void {
    this.#write([...this.list().filter(({ hash }) => hash !== model.hash), model]);
  }

  /** Its files stay: whose they are is not known here. */
  remove(hash: string): void {
    this.#write(this.list().filter(model => model.hash !== hash));
  }

  #write(models: readonly RegisteredModel[]): void {
    mkdirSync(dirname(this.#registry), { recursive: true });
    const temporary = `${this.#registry}.${process.pid}`;
    writeFileSync(temporary, `${JSON.stringify(models, null, 2)}\n`);
    renameSync(temporary, this.#registry);
  }
}

/** Megabytes done, in all and a second, and the file under way; a pipe gets a line now and then. */
function progressBar(): { update(done: number, total: number, file: string): void; stop(): void } {
  const bar = new SingleBar({
    format: "{bar} {percentage} %  {value} of {total} MB, {eta_formatted} left  {file}",
    noTTYOutput: true,
    notTTYSchedule: 5000,
    hideCursor: true,
    etaBuffer: 100,
  });
  const megabytes = (bytes: number): number => Math.round(bytes / 1e6);
  let started = false;
  return {
    update(done, total, file) {
      if (!started) bar.start(megabytes(total), megabytes(done), { file });
      started = true;
      bar.update(megabytes(done), { file });
    },
    stop() {
      if (started) bar.stop();
    },
  };
}
