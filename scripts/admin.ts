import { existsSync, readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { z } from "zod";
import { inspectModel } from "../gpu-runner/inspect.ts";
import { ModelError } from "../gpu-runner/weights/model-error.ts";
import { AdminClient, AdminError } from "./admin-client.ts";
import { describeInspection } from "./describe-inspection.ts";
import { HubError } from "./hub.ts";
import { LocalState, stateFolder } from "./local/state.ts";
import { ModelStore } from "./model-store.ts";

/** The operator's command line: keys, runner tokens, models, dead letters. */
const usage = `Usage:
  npm run key -- create --tenant <name> [--name <label>] [--scopes read,write,publish]
  npm run key -- list
  npm run key -- revoke <key id>
  npm run runner-token -- create [--pool <pool>] [--name <label>]
  npm run runner-token -- list
  npm run runner-token -- revoke <token id>
  npm run model -- add <folder | file | hub id> [--name <name>] [--pool <pool>] [--fp16]
  npm run model -- inspect <folder | file | hub id> [--fp16]
  npm run model -- list
  npm run model -- remove <name>
  npm run dead-letters

The edge: ATELIER_URL and ATELIER_ADMIN_TOKEN, else the one that "npm start" runs here.
A hub id: owner/name, owner/name@revision or owner/name:file.safetensors; HF_TOKEN for what is gated.`;

class UsageError extends Error {}

interface Arguments {
  readonly words: readonly string[];
  readonly options: {
    readonly tenant?: string;
    readonly name?: string;
    readonly scopes?: string;
    readonly pool?: string;
    readonly fp16?: boolean;
  };
}
/** @param connect makes the client: not every command needs an edge */
type Command = (connect: () => AdminClient, given: Arguments) => Promise<void>;

const commands: Readonly<Record<string, Command>> = {
  "key create": async (connect, { options }) => {
    if (options.tenant === undefined) throw new UsageError("key create needs --tenant <name>: whose key it is.");
    const scopes = options.scopes?.split(",");
    const { id, key } = await connect().createKey({ tenant: options.tenant, name: options.name ?? "unnamed", ...(scopes && { scopes }) });
    console.log(`${key}\n\nIts id is ${id}. The key is not stored: keep it now.`);
  },
  "key list": async connect =>
    table(
      ["id", "tenant", "name", "scopes", "created", "revoked"],
      (await connect().listKeys()).map(key => [
        key.id,
        key.tenant,
        key.name,
        key.scopes.join(","),
        day(key.created_at),
        day(key.revoked_at),
      ]),
    ),
  "key revoke": async (connect, { words }) => {
    await connect().revokeKey(required(words[0], "key revoke needs the key's id, key_…: npm run key -- list shows it."));
    console.log("Revoked.");
  },
  "runner-token create": async (connect, { options }) => {
    const { token } = await connect().createRunnerToken({ pool: options.pool ?? "default", name: options.name ?? "unnamed" });
    console.log(`${token}\n\nThe token is not stored: keep it now.`);
  },
  "runner-token list": async connect =>
    table(
      ["id", "pool", "name", "created", "revoked"],
      (await connect().listRunnerTokens()).map(token => [token.id, token.pool, token.name, day(token.created_at), day(token.revoked_at)]),
    ),
  "runner-token revoke": async (connect, { words }) => {
    await connect().revokeRunnerToken(required(words[0], "runner-token revoke needs the token's id, rnr_…"));
    console.log("Revoked.");
  },
  "model add": async (connect, { words, options }) => {
    const store = modelStore();
    const client = connect();
    const path = await store.locate(required(words[0], "model add needs the model's folder, file or hub id."), options);
    const { name, hash, pool } = await client.addModel(path, options);
    store.add({ name, hash, path });
    console.log(`${name} (${hash}) is served by the pool ${pool}. Runners elsewhere need the same files.`);
  },
  "model inspect": async (_, { words, options }) => {
    const path = await modelStore().locate(required(words[0], "model inspect needs the model's folder, file or hub id."), options);
    console.log(describeInspection(path, await inspectModel(path)));
  },
  "model list": async connect => {
    const here = new Map(
      modelStore()
        .list()
        .map(({ hash, path }) => [hash, path]),
    );
    table(
      ["name", "family", "tasks", "pool", "size", "parameters", "hash", "here"],
      (await connect().listModels()).map(model => [
        model.name,
        model.family,
        model.tasks.join(","),
        model.pool,
        `${model.defaults.width}x${model.defaults.height}`,
        String(model.parameters),
        model.hash,
        here.get(model.hash) ?? "",
      ]),
    );
  },
  "model remove": async (connect, { words }) => {
    const name = required(words[0], "model remove needs the model's name.");
    const client = connect();
    const models = await client.listModels();
    const hash = models.find(known => known.name === name)?.hash;
    await client.removeModel(name);
    // The same content may be served under another name.
    const stays = models.some(known => known.name !== name && known.hash === hash);
    if (hash !== undefined && !stays) modelStore().remove(hash);
    console.log("Removed. Its files are where they were.");
  },
  "dead-letters list": async connect =>
    table(
      ["id", "queue", "attempts", "created", "body"],
      (await connect().listDeadLetters()).map(letter => [
        letter.id,
        letter.queue,
        String(letter.attempts),
        day(letter.created_at),
        letter.body,
      ]),
    ),
};

/** What this machine has, beside what the edge knows. */
function modelStore(): ModelStore {
  return new ModelStore(stateFolder());
}

function required(word: string | undefined, sentence: string): string {
  if (word === undefined) throw new UsageError(sentence);
  return word;
}

function day(time: number | null): string {
  return time === null ? "" : new Date(time).toISOString().slice(0, 16).replace("T", " ");
}

/** Prints rows in columns. */
function table(head: readonly string[], rows: readonly (readonly string[])[]): void {
  if (rows.length === 0) {
    console.log("None.");
    return;
  }
  const widths = head.map((title, i) => Math.max(title.length, ...rows.map(row => row[i]!.length)));
  for (const row of [head, ...rows])
    console.log(
      row
        .map((cell, i) => cell.padEnd(widths[i]!))
        .join("  ")
        .trimEnd(),
    );
}

function connect(): AdminClient {
  const { ATELIER_URL: url, ATELIER_ADMIN_TOKEN: token } = process.env;
  if (url !== undefined && token !== undefined) return new AdminClient(url, token);
  const folder = stateFolder();
  if (!existsSync(folder)) throw new AdminError("No edge is known here: run npm start first, or set ATELIER_URL and ATELIER_ADMIN_TOKEN.");
  const state = new LocalState(folder);
  const endpoint = state.path("endpoint.json");
  if (!existsSync(endpoint)) throw new AdminError("The edge has not been started here yet: run npm start first, or set ATELIER_URL.");
  const { url: local } = z.object({ url: z.string() }).parse(JSON.parse(readFileSync(endpoint, "utf8")));
  return new AdminClient(url ?? local, token ?? state.secrets().ADMIN_TOKEN ?? "");
}

async function main(argv: readonly string[]): Promise<void> {
  const text = { type: "string" } as const;
  const { values: options, positionals } = parseArgs({
    args: [...argv],
    allowPositionals: true,
    options: { tenant: text, name: text, scopes: text, pool: text, fp16: { type: "boolean" } },
  });
  const [noun = "", verb = "list", ...words] = positionals;
  const command = commands[`${noun} ${verb}`];
  if (!command) throw new UsageError(usage);
  await command(connect, { words, options });
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  const misused = error instanceof TypeError && "code" in error && String(error.code).startsWith("ERR_PARSE_ARGS");
  if (!misused && !(error instanceof UsageError || error instanceof AdminError || error instanceof ModelError || error instanceof HubError))
    throw error;
  console.error(error.message);
  process.exitCode = 1;
}
