import { z } from "zod";
import {
  apiKeyViewSchema,
  createdKeySchema,
  createdTokenSchema,
  deadLetterSchema,
  poolStatusSchema,
  runnerTokenViewSchema,
  securityEventSchema,
} from "../shared/admin.ts";
import { problemSchema } from "../shared/errors.ts";
import { type ModelManifest, modelManifestSchema } from "../shared/model.ts";
import { publicJwkSchema } from "../shared/signing.ts";
import { manifestOf } from "./model-manifest.ts";

/** The edge refused, or could not be reached. The message is one sentence fit for an operator. */
export class AdminError extends Error {}

/** The operator's API of a running edge (edge/routes/admin.ts). Every method throws AdminError. */
export class AdminClient {
  readonly #url: string;
  readonly #token: string;

  constructor(url: string, token: string) {
    this.#url = url.replace(/\/$/, "");
    this.#token = token;
  }

  /** Creates a key, which is shown only here, and the tenant where there is none of that name. */
  createKey(options: {
    tenant: string;
    name: string;
    scopes?: readonly string[];
  }): Promise<{ id: string; tenant_id: string; key: string }> {
    return this.#call("POST", "keys", createdKeySchema, options);
  }

  listKeys() {
    return this.#list("keys", apiKeyViewSchema);
  }

  revokeKey(id: string): Promise<void> {
    return this.#remove(`keys/${id}`);
  }

  /** Creates a token, which is shown only here. */
  createRunnerToken(options: { pool: string; name: string }): Promise<{ id: string; token: string }> {
    return this.#call("POST", "runner-tokens", createdTokenSchema, options);
  }

  listRunnerTokens() {
    return this.#list("runner-tokens", runnerTokenViewSchema);
  }

  revokeRunnerToken(id: string): Promise<void> {
    return this.#remove(`runner-tokens/${id}`);
  }

  /** Registers the model of a folder under its name, again if need be. @throws ModelError as well */
  async addModel(folder: string, choice: { name?: string; pool?: string } = {}): Promise<ModelManifest> {
    const { name, ...manifest } = await manifestOf(folder, choice);
    return this.#call("PUT", `models/${name}`, modelManifestSchema, manifest);
  }

  listModels() {
    return this.#list("models", modelManifestSchema);
  }

  removeModel(name: string): Promise<void> {
    return this.#remove(`models/${name}`);
  }

  listDeadLetters() {
    return this.#list("dead-letters", deadLetterSchema);
  }

  listSecurityEvents() {
    return this.#list("security-events", securityEventSchema);
  }

  /** Makes a pool's dispatcher sweep, and tells what it sees. */
  wakeDispatcher(pool: string) {
    return this.#call("GET", `dispatchers/${pool}`, poolStatusSchema);
  }

  /** Public keys by which runners verify grants. */
  grantKeys() {
    return this.#call("GET", "grant-keys", z.object({ keys: z.array(publicJwkSchema) }));
  }

  async #list<S extends z.ZodType>(path: string, schema: S): Promise<z.infer<S>[]> {
    return (await this.#call("GET", path, z.object({ data: z.array(schema) }))).data;
  }

  async #remove(path: string): Promise<void> {
    await this.#request("DELETE", path);
  }

  async #call<S extends z.ZodType>(method: string, path: string, schema: S, body?: unknown): Promise<z.infer<S>> {
    return schema.parse(await (await this.#request(method, path, body)).json());
  }

  async #request(method: string, path: string, body?: unknown): Promise<Response> {
    const headers = { authorization: `Bearer ${this.#token}`, ...(body !== undefined && { "content-type": "application/json" }) };
    const answer = await fetch(`${this.#url}/admin/v1/${path}`, {
      method,
      headers,
      ...(body !== undefined && { body: JSON.stringify(body) }),
    }).catch(() => {
      throw new AdminError(`The edge at ${this.#url} cannot be reached: is it running?`);
    });
    if (!answer.ok) throw new AdminError(await sentenceOf(answer));
    return answer;
  }
}

async function sentenceOf(answer: Response): Promise<string> {
  const problem = problemSchema.safeParse(await answer.json().catch(() => undefined));
  if (!problem.success) return `The edge answered ${answer.status} ${answer.statusText}.`;
  const { title, detail, errors = [] } = problem.data;
  return [detail ?? title, ...errors.map(({ field, expected, got }) => `${field}: expected ${expected}, got ${got}.`)].join(" ");
}
