import { z } from "zod";

/**
 * Names of things, as every part writes them. An id is a prefix and a ULID, so ids sort by time.
 * A generation is what its job makes: both carry the same ULID.
 */
export const idPrefixes = {
  tenant: "ten",
  key: "key",
  runnerToken: "rnr",
  generation: "gen",
  job: "job",
  execution: "exe",
  picture: "pic",
  instance: "ins",
  upload: "upl",
  adapter: "adp",
  dataset: "dst",
  training: "trn",
} as const;
export type IdKind = keyof typeof idPrefixes;

const ulidPattern = "[0-7][0-9A-HJKMNP-TV-Z]{25}";

/** zod schema of one kind of id, for example `gen_01JD…`. */
export function idSchema(kind: IdKind) {
  return z.string().regex(new RegExp(`^${idPrefixes[kind]}_${ulidPattern}$`), `expected an id of the form ${idPrefixes[kind]}_<ULID>`);
}

/** The same ULID under another prefix: `job_X` for `gen_X`. */
export function sameUlid(id: string, kind: IdKind): string {
  return `${idPrefixes[kind]}_${id.slice(id.indexOf("_") + 1)}`;
}

/** `sha256:` and 64 hexadecimal digits: how models and adapters are named wherever a name could be moved. */
export const contentHashSchema = z.string().regex(/^sha256:[0-9a-f]{64}$/, "expected sha256:<64 hexadecimal digits>");

/** 64 hexadecimal digits. */
export const sha256Schema = z.string().regex(/^[0-9a-f]{64}$/, "expected 64 hexadecimal digits");

/** A model's name in requests. */
export const modelNameSchema = z.string().regex(/^[a-z0-9][a-z0-9._-]{0,63}$/, "expected 1-64 of a-z 0-9 . _ -");

/** An adapter's name in requests. */
export const adapterNameSchema = z
  .string()
  .regex(/^(?!(adp|upl|pic)_)[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/, "expected 1-100 of A-Z a-z 0-9 . _ -, which does not look like an id");

/** A pool is a routing key: a model belongs to one, a runner serves one, a dispatcher governs one. */
export const poolSchema = z.string().regex(/^[a-z0-9][a-z0-9-]{0,31}$/, "expected 1-32 of a-z 0-9 -");
