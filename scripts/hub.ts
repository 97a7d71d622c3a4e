/** Models from the Hugging Face Hub: which files of a repository a model needs, and their download: resumable, checked by hash. */
import { createHash } from "node:crypto";
import { createReadStream, createWriteStream, existsSync, mkdirSync, renameSync, rmSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { Readable, Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { ReadableStream } from "node:stream/web";
import { setTimeout as delay } from "node:timers/promises";
import { downloadFile, HubApiError, type ListFileEntry, listFiles, modelInfo } from "@huggingface/hub";

/** The hub refused, or has not what was asked for. The message is one sentence fit for an operator. */
export class HubError extends Error {
  override readonly name = "HubError";
}

/** A repository's model: all of a diffusers folder, or one file. */
export interface HubModel {
  /** `owner/name` */
  repository: string;
  /** A branch, a tag or a commit. */
  revision: string;
  /** Of a single file in it; null: whatever the repository holds. */
  file: string | null;
}

const hubId = /^(?<repository>[\w-][\w.-]*\/[\w-][\w.-]*)(@(?<revision>[\w./-]+))?(:(?<file>[^:]+\.safetensors))?$/;

/** `owner/name`, `owner/name@revision`, `owner/name:file.safetensors`; undefined for what has another form. */
export function parseHubId(text: string): HubModel | undefined {
  const { repository, revision = "main", file = null } = hubId.exec(text)?.groups ?? {};
  return repository === undefined ? undefined : { repository, revision, file };
}

export interface HubOptions {
  /** Where models go: each in `<owner>--<name>/<commit>`. */
  folder: string;
  /** Prefer half-precision weights where a repository has both. */
  fp16?: boolean;
  hubUrl?: string;
  accessToken?: string;
  /** Bytes on disk and in all, after every chunk. */
  onProgress?: (done: number, total: number, file: string) => void;
  /** Milliseconds before the first retry; doubled at each. */
  retryMs?: number;
}

/** Downloads what is not there yet and gives the path of the folder or file. @throws HubError */
export async function downloadModel(model: HubModel, options: HubOptions): Promise<string> {
  const hub = {
    repo: model.repository,
    ...(options.hubUrl && { hubUrl: options.hubUrl }),
    ...(options.accessToken && { accessToken: options.accessToken }),
  };
  const { sha: commit } = await asked(() =>
    modelInfo({ ...hub, name: model.repository, revision: model.revision, additionalFields: ["sha"] }),
  );
  const listed = await asked(() => Array.fromAsync(listFiles({ ...hub, revision: commit, recursive: true })));
  const files = filesOf(model, listed, options.fp16 ?? false);
  const folder = join(options.folder, model.repository.replace("/", "--"), commit);
  const total = files.reduce((sum, { size }) => sum + size, 0);
  let before = 0;
  for (const file of files) {
    const target = join(folder, file.path);
    const onBytes = (bytes: number): void => options.onProgress?.(before + bytes, total, file.path);
    if (!existsSync(target)) await download({ ...hub, revision: commit }, file, target, onBytes, options.retryMs ?? 1000);
    before += file.size;
    options.onProgress?.(before, total, file.path);
  }
  return files.some(({ path }) => path === "model_index.json") ? folder : join(folder, files[0]!.path);
}

/** Directories of a diffusers folder that a model is made of; the rest (safety checker, feature extractor) draws nothing. */
const components = ["unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"];

/** The files that a model needs, of all that its repository holds. @throws HubError */
export function filesOf(model: HubModel, listed: readonly ListFileEntry[], fp16: boolean): ListFileEntry[] {
  const files = listed.filter(({ type, path }) => type === "file" && isPlainPath(path));
  const weights = files.filter(({ path }) => path.endsWith(".safetensors"));
  if (model.file !== null) {
    const found = files.find(({ path }) => path === model.file);
    if (found) return [found];
    throw new HubError(
      `${model.repository} has no file ${model.file}; it has ${weights.map(({ path }) => path).join(", ") || "no safetensors"}.`,
    );
  }
  const index = files.find(({ path }) => path === "model_index.json");
  if (index) return [index, ...components.flatMap(name => componentFiles(files, name, fp16))];
  const single = weights.filter(({ path }) => !path.includes("/"));
  if (single.length === 1) return single;
  const choice = single.map(({ path }) => `${model.repository}:${path}`).join(" or ");
  throw new HubError(
    `${model.repository}: expected a diffusers folder or one safetensors file, got ${choice ? `several: ask for ${choice}` : "neither"}.`,
  );
}

/** Configs, vocabularies and one set of weights: whole before sharded, and of the precision that is preferred, if it is there. */
function componentFiles(files: readonly ListFileEntry[], component: string, fp16: boolean): ListFileEntry[] {
  const inside = files.filter(({ path }) => dirname(path) === component);
  const isWeight = ({ path }: ListFileEntry): boolean => /\.safetensors(\.index\.(fp16\.)?json|\.index\.json)?$/.test(path);
  const isHalf = ({ path }: ListFileEntry): boolean => /\.fp16[.-]/.test(path);
  const weights = inside.filter(isWeight).filter(({ path }) => /^(diffusion_pytorch_model|model)[.-]/.test(basename(path)));
  const isShard = ({ path }: ListFileEntry): boolean => /-\d{5}-of-\d{5}\./.test(path) || path.includes(".index.");
  const sets = [false, true].flatMap(half => [
    weights.filter(file => isHalf(file) === half && !isShard(file)),
    weights.filter(file => isHalf(file) === half && isShard(file)),
  ]);
  const chosen = (fp16 ? [...sets.slice(2), ...sets.slice(0, 2)] : sets).find(set => set.length > 0) ?? [];
  return [...inside.filter(file => !isWeight(file) && /\.(json|txt)$/.test(file.path)), ...chosen];
}

/** Paths come from the repository and are joined onto a folder of this machine. */
function isPlainPath(path: string): boolean {
  return !path.startsWith("/") && !path.includes("\\") && !path.split("/").some(part => part === ".." || part === "");
}

/** Attempts without a byte of progress before a download is given up. */
const MOST_FUTILE = 6;

type Hub = { repo: string; revision: string; hubUrl?: string; accessToken?: string };

/** Continues the partial file that an earlier attempt left; the file gets its name only once its hash is right. */
async function download(hub: Hub, file: ListFileEntry, target: string, onBytes: (bytes: number) => void, retryMs: number): Promise<void> {
  const partial = `${target}.incomplete`;
  mkdirSync(dirname(target), { recursive: true });
  let futile = 0;
  for (;;) {
    const before = sizeOf(partial);
    try {
      if (before < file.size || !existsSync(partial)) await append(hub, file, partial, before, onBytes);
      if (await isIntact(partial, file)) return renameSync(partial, target);
      rmSync(partial);
      throw new HubError(`${file.path}: the content does not have the hash that ${hub.repo} names`);
    } catch (error) {
      futile = sizeOf(partial) > before ? 0 : futile + 1;
      if (isFinal(error)) throw sentence(error, hub);
      if (futile >= MOST_FUTILE) throw new HubError(`${file.path}: ${messageOf(error)}, after ${MOST_FUTILE} attempts without progress.`);
      await delay(retryMs * 2 ** futile);
    }
  }
}

async function append(hub: Hub, file: ListFileEntry, partial: string, from: number, onBytes: (bytes: number) => void): Promise<void> {
  const output = createWriteStream(partial, { flags: "a" });
  if (file.size === 0) return void output.end();
  const blob = await downloadFile({ ...hub, path: file.path, xet: false });
  if (!blob) throw new HubError(`${hub.repo} has no file ${file.path}.`);
  let done = from;
  const count = new Transform({
    transform(chunk: Uint8Array, _encoding, next) {
      done += chunk.length;
      // A server that ignores the range sends more than is missing.
      if (done > file.size) return next(new Error("the server sent more than it announced"));
      onBytes(done);
      next(null, chunk);
    },
  });
  const stream = blob.slice(from, file.size).stream() as ReadableStream<Uint8Array>;
  await pipeline(Readable.fromWeb(stream), count, output);
}

/** Large files are named by SHA-256, small ones as git names a blob. */
async function isIntact(path: string, file: ListFileEntry): Promise<boolean> {
  if (sizeOf(path) !== file.size) return false;
  const expected = file.lfs?.oid ?? file.oid;
  const hash = file.lfs ? createHash("sha256") : createHash("sha1").update(`blob ${file.size}\0`);
  await pipeline(createReadStream(path), hash);
  return hash.digest("hex") === expected;
}

function sizeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.size ?? 0;
}

/** What the hub answers with 401, 403 or 404 stays so; the rest may pass. */
function isFinal(error: unknown): boolean {
  return error instanceof HubApiError && error.statusCode < 500 && error.statusCode !== 408 && error.statusCode !== 429;
}

async function asked<T>(question: () => Promise<T>): Promise<T> {
  try {
    return await question();
  } catch (error) {
    throw sentence(error);
  }
}

function sentence(error: unknown, { repo }: Partial<Hub> = {}): Error {
  if (!(error instanceof HubApiError)) return new HubError(`The hub cannot be reached: ${messageOf(error)}.`);
  const reason = {
    401: "it is private or gated: set HF_TOKEN",
    403: "the token may not read it",
    404: "there is no such repository, revision or file",
  };
  return new HubError(`The hub refused ${repo ?? "the request"}: ${reason[error.statusCode as 401] ?? `it answered ${error.statusCode}`}.`);
}

function messageOf(error: unknown): string {
  return error instanceof Error ? (error.cause instanceof Error ? error.cause.message : error.message) : String(error);
}
