import { homedir, totalmem } from "node:os";
import { delimiter, join, resolve } from "node:path";
import { z } from "zod";
import { parseJson } from "../shared/json.ts";
import { publicJwkSchema } from "../shared/signing.ts";
import { executionProviderNames } from "./graph/emitter.ts";
import { MAX_BATCH } from "./model-messages.ts";

/** A setting is missing or malformed. The message is one sentence that names the variable, never a secret's value. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
}

const integer = (least: number, most: number) => z.coerce.number("expected a number").int("expected a whole number").min(least).max(most);
const seconds = 1000;
const loopback = new Set(["localhost", "127.0.0.1", "[::1]"]);

const edgeUrl = z.url({ protocol: /^https?$/, error: "expected an http or https URL" }).transform((text, context) => {
  const url = new URL(text);
  if (url.protocol === "http:" && !loopback.has(url.hostname))
    context.addIssue("expected https; http is only for this machine (localhost)");
  if (url.username || url.password || url.search || url.hash) context.addIssue("expected a URL without credentials, query or fragment");
  return url;
});

const grantKeys = z.string().transform((text, context) => {
  const parsed = z.object({ keys: z.array(publicJwkSchema).min(1) }).safeParse(parseJson(text));
  if (parsed.success) return parsed.data.keys;
  context.addIssue('expected a JWKS with public Ed25519 keys: {"keys":[{"kty":"OKP","crv":"Ed25519","x":"…","kid":"…"}]}');
  return z.NEVER;
});

const folders = z
  .string()
  .transform(text => text.split(new RegExp(`[,${delimiter}]`)).flatMap(part => (part.trim() ? [resolve(part.trim())] : [])))
  .refine(list => list.length > 0, "expected model folders, separated by commas");

const path = z
  .string()
  .min(1)
  .transform(text => resolve(text));

/** What each variable means, beside its default; docs/operating.md has the same as a table. Times are milliseconds. */
export const environmentSchema = z.object({
  /** The edge's address. */
  ATELIER_EDGE_URL: edgeUrl,
  /** `rnr_<ULID>.<secret>`, as `npm run runner-token -- create` prints it. */
  ATELIER_RUNNER_TOKEN: z.string().regex(/^rnr_[0-9A-Z]{26}\.[\w-]{16,}$/, "expected rnr_<id>.<secret>"),
  /** JWKS of the public keys that may sign grants. Configured, never fetched: who answers at the edge's address can't choose them. */
  ATELIER_GRANT_KEYS: grantKeys,
  /** Model folders and single files. */
  ATELIER_MODELS: folders.optional(),
  /** Registry of further models, a JSON list of {hash, path}; what is added to it is served without a restart. */
  ATELIER_MODEL_REGISTRY: path.optional(),
  /** Bytes that the weights of loaded models may take; absent: a share of the memory that this process may use. */
  ATELIER_MEMORY_BUDGET: integer(1, Number.MAX_SAFE_INTEGER).optional(),
  /** Bytes that widened weights, weights with adapters merged in, and prepared models may take on disk. */
  ATELIER_CACHE_BUDGET: integer(1, Number.MAX_SAFE_INTEGER).default(128 * 2 ** 30),
  /** Bytes that fetched pictures and adapters may take on disk. */
  ATELIER_INPUT_BUDGET: integer(1, Number.MAX_SAFE_INTEGER).default(32 * 2 ** 30),
  /** Most executions that are computed as one batch. */
  ATELIER_MAX_BATCH: integer(1, MAX_BATCH).default(4),
  ATELIER_PROVIDER: z.enum(executionProviderNames).default("cpu"),
  /** Threads of one operator; absent: one per physical core. */
  ATELIER_THREADS: integer(1, 1024).optional(),
  /** Where converted weights are kept. May be shared between runners of one machine. */
  ATELIER_CACHE_DIR: path.default(join(homedir(), ".cache", "atelier")),
  /** Address and port of health and metrics; port 0 takes any free one, and the log tells which. */
  ATELIER_HTTP_HOST: z.string().min(1).default("127.0.0.1"),
  ATELIER_HTTP_PORT: integer(0, 65535).default(9464),
  ATELIER_LOG_LEVEL: z.enum(["fatal", "error", "warn", "info", "debug", "trace"]).default("info"),
  /** Least time without a step after which the model thread counts as hung. */
  ATELIER_WATCHDOG_MS: integer(100, 3600 * seconds).default(60 * seconds),
  /** Most time that loading the models may take. */
  ATELIER_LOAD_MS: integer(100, 24 * 3600 * seconds).default(900 * seconds),
  /** Whether this runner takes trainings, and whether it makes pictures between the steps of one. */
  ATELIER_TRAIN: z.enum(["off", "alone", "between-steps"]).default("between-steps"),
  /** Least time between two uploads of a training's checkpoint. */
  ATELIER_CHECKPOINT_MS: integer(0, 24 * 3600 * seconds).default(60 * seconds),
  /** How long SIGTERM waits for running work before it is handed back. */
  ATELIER_DRAIN_MS: integer(0, 3600 * seconds).default(25 * seconds),
});

/** Of the memory that the process may use, for weights: activations, adapters and what surrounds them need the rest. */
const WEIGHTS_SHARE = 0.6;

/** The default of ATELIER_MEMORY_BUDGET: a share of the machine's memory, or of the limit that the process is under. */
export function defaultMemoryBudget(machine = totalmem(), limit = process.constrainedMemory()): number {
  return Math.floor(WEIGHTS_SHARE * (limit > 0 ? Math.min(machine, limit) : machine));
}

export interface RunnerConfig {
  edgeUrl: URL;
  token: string;
  grantKeys: z.infer<typeof grantKeys>;
  models: string[];
  modelRegistry: string | undefined;
  memoryBudget: number;
  cacheBudget: number;
  inputBudget: number;
  maxBatch: number;
  provider: z.infer<typeof environmentSchema>["ATELIER_PROVIDER"];
  threads: number | undefined;
  cacheDir: string;
  http: { host: string; port: number };
  logLevel: z.infer<typeof environmentSchema>["ATELIER_LOG_LEVEL"];
  watchdogMs: number;
  loadMs: number;
  trains: z.infer<typeof environmentSchema>["ATELIER_TRAIN"];
  checkpointMs: number;
  drainMs: number;
}

/**
 * Reads the runner's settings from environment variables; an empty variable counts as absent.
 * @throws ConfigError
 */
export function readConfig(environment: NodeJS.ProcessEnv): RunnerConfig {
  const given = Object.fromEntries(Object.entries(environment).filter(([, value]) => value !== ""));
  const parsed = environmentSchema
    .refine(({ ATELIER_MODELS, ATELIER_MODEL_REGISTRY }) => ATELIER_MODELS || ATELIER_MODEL_REGISTRY, {
      path: ["ATELIER_MODELS"],
      when: () => true,
    })
    .safeParse(given);
  if (!parsed.success) {
    const wrong = parsed.error.issues.map(({ path, message }) => {
      const name = String(path[0]);
      return given[name] === undefined ? `${name} is not set` : `${name}: ${message}`;
    });
    throw new ConfigError(`The runner's settings are not valid: ${wrong.join("; ")}.`);
  }
  const values = parsed.data;
  return {
    edgeUrl: values.ATELIER_EDGE_URL,
    token: values.ATELIER_RUNNER_TOKEN,
    grantKeys: values.ATELIER_GRANT_KEYS,
    models: values.ATELIER_MODELS ?? [],
    modelRegistry: values.ATELIER_MODEL_REGISTRY,
    memoryBudget: values.ATELIER_MEMORY_BUDGET ?? defaultMemoryBudget(),
    cacheBudget: values.ATELIER_CACHE_BUDGET,
    inputBudget: values.ATELIER_INPUT_BUDGET,
    maxBatch: values.ATELIER_MAX_BATCH,
    provider: values.ATELIER_PROVIDER,
    threads: values.ATELIER_THREADS,
    cacheDir: values.ATELIER_CACHE_DIR,
    http: { host: values.ATELIER_HTTP_HOST, port: values.ATELIER_HTTP_PORT },
    logLevel: values.ATELIER_LOG_LEVEL,
    watchdogMs: values.ATELIER_WATCHDOG_MS,
    loadMs: values.ATELIER_LOAD_MS,
    trains: values.ATELIER_TRAIN,
    checkpointMs: values.ATELIER_CHECKPOINT_MS,
    drainMs: values.ATELIER_DRAIN_MS,
  };
}
