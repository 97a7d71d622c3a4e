import { readFileSync, unwatchFile, watchFile } from "node:fs";
import { dirname, resolve } from "node:path";
import { z } from "zod";
import { parseJson } from "../shared/json.ts";
import { contentHashSchema } from "../shared/names.ts";

/** A model on this machine: where it lies and what it is. */
export const registeredModelSchema = z.object({ hash: contentHashSchema, path: z.string().min(1) });
export type RegisteredModel = z.infer<typeof registeredModelSchema>;

/** How often the file is looked at, in milliseconds. */
const LOOK_MS = 1000;

/**
 * The models of a registry file, a JSON list of `{hash, path}`; a relative path counts from the file's folder, other fields are ignored. A file that
 * doesn't exist is an empty registry.
 * @throws Error with one sentence where the file can't be read.
 */
export function readModelRegistry(file: string): RegisteredModel[] {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return [];
    throw new Error(`the model registry ${file} can't be read: ${error instanceof Error ? error.message : "unknown error"}`);
  }
  const parsed = z.array(registeredModelSchema).safeParse(parseJson(text));
  if (!parsed.success) throw new Error(`the model registry ${file}: expected a JSON list of {hash, path}`);
  return parsed.data.map(({ hash, path }) => ({ hash, path: resolve(dirname(file), path) }));
}

/** Tells of the registry whenever its file has changed, until the returned function is called. Polls, which works on every file system. */
export function watchModelRegistry(
  file: string,
  onChange: (models: RegisteredModel[]) => void,
  onProblem: (problem: string) => void,
): () => void {
  const look = () => {
    try {
      onChange(readModelRegistry(file));
    } catch (error) {
      onProblem(error instanceof Error ? error.message : "unknown error");
    }
  };
  watchFile(file, { interval: LOOK_MS, persistent: false }, look);
  return () => unwatchFile(file, look);
}
