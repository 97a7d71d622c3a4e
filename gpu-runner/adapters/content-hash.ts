/** What an adapter's files are on the disk, and the hash that names them. */
import { readdirSync, statSync } from "node:fs";
import { basename, join } from "node:path";
import { adapterHash } from "../../shared/adapter.ts";
import { sha256OfFile } from "../weights/file-hash.ts";
import { ModelError } from "../weights/model-error.ts";

export interface DiskFile {
  /** Absolute. */
  file: string;
  /** Within the adapter. */
  path: string;
  bytes: number;
}

const maxFiles = 16;
const known = /\.(?:safetensors|json|pt|bin)$/;

/** The files of an adapter: the one, or those of a folder that an adapter may have. Throws ModelError. */
export function adapterDiskFiles(path: string): DiskFile[] {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (!stat) throw new ModelError(path, "file", "a file or folder", "none");
  if (!stat.isDirectory()) return [{ file: path, path: basename(path), bytes: stat.size }];
  const names = readdirSync(path)
    .filter(name => known.test(name))
    .sort();
  if (names.length === 0 || names.length > maxFiles) throw new ModelError(path, "folder", `1 to ${maxFiles} files`, String(names.length));
  return names.map(name => ({ file: join(path, name), path: name, bytes: statSync(join(path, name)).size }));
}

/** Reads all of them. */
export async function hashAdapterFiles(files: readonly DiskFile[]): Promise<string> {
  const rows: { path: string; sha256: string }[] = [];
  for (const { file, path } of files) {
    rows.push({ path, sha256: await sha256OfFile(file) });
  }
  return adapterHash(rows);
}
