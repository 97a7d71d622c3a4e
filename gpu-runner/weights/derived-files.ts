/**
 * Files of the cache that are made from others once, under names that say what from: widened weights, weights that adapters
 * change, prepared models. Each can be made again, so the least recently used give way. When one was used is its time of access;
 * the time of its content stays, by which prepared models are known.
 */
import { randomUUID } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, statSync, utimesSync } from "node:fs";
import { dirname, join } from "node:path";
import { CacheError } from "./cache-error.ts";

/** Folders of the cache with derived files; in `prepared` an entry is a folder. */
const derivedFolders = ["weights", "patched", "prepared"] as const;
export type DerivedFolder = (typeof derivedFolders)[number];

/** Ends the names of what is being written. */
export const temporaryEnding = ".tmp";

/** What was used so lately may be in use by any process of this machine. */
export const IN_USE_MS = 15 * 60_000;
/** How often what is held is marked as used. */
const MARK_MS = 60_000;
/** What is still unfinished after so long was left by a process that was killed. */
const ABANDONED_MS = 24 * 3_600_000;

/** The file, marked as used now; undefined where it has not been made. */
export function findDerived(file: string): string | undefined {
  const found = statSync(file, { throwIfNoEntry: false });
  if (!found) return undefined;
  try {
    utimesSync(file, new Date(), found.mtime);
  } catch (error) {
    // Another process has removed it since.
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
  }
  return file;
}

/**
 * The file of this name in a folder of the cache, which `write` makes if need be under a name of its own. Throws what `write` throws,
 * and CacheError where the cache cannot be written; no partial file is left.
 */
export function deriveFile(cacheDir: string, folder: DerivedFolder, name: string, write: (temporary: string) => void): string {
  const file = join(cacheDir, folder, name);
  const temporary = `${file}.${randomUUID()}${temporaryEnding}`;
  try {
    const found = findDerived(file);
    if (found !== undefined) return found;
    mkdirSync(dirname(file), { recursive: true });
    write(temporary);
    renameSync(temporary, file);
    return file;
  } catch (error) {
    if (existsSync(temporary)) rmSync(temporary);
    // The system's errors have a code.
    throw error instanceof Error && "code" in error ? new CacheError(cacheDir, error) : error;
  }
}

/** Marks those of the files that are derived as used, again and again until the returned function is called. */
export function holdDerived(files: Iterable<string>, cacheDir: string): () => void {
  const derived = derivedFolders.map(folder => join(cacheDir, folder));
  const held = [...new Set(files)].filter(file => derived.includes(dirname(file)));
  const mark = (): void => held.forEach(findDerived);
  mark();
  const timer = setInterval(mark, MARK_MS);
  timer.unref();
  return () => clearInterval(timer);
}

/** Removes what was left unfinished, and the least recently used until the rest is within the budget. What is mapped stays readable. */
export function trimDerived(cacheDir: string, budget: number, now = Date.now()): void {
  const parents = derivedFolders.map(folder => join(cacheDir, folder));
  for (const parent of parents) removeAbandoned(parent, name => name.endsWith(temporaryEnding), now);
  const entries = parents.flatMap(finished);
  let total = entries.reduce((sum, { bytes }) => sum + bytes, 0);
  for (const { path, bytes, used } of entries.sort((a, b) => a.used - b.used)) {
    if (total <= budget || now - used < IN_USE_MS) return;
    rmSync(path, { recursive: true, force: true });
    total -= bytes;
  }
}

interface Entry {
  path: string;
  bytes: number;
  /** Milliseconds since 1970. */
  used: number;
}

function finished(parent: string): Entry[] {
  return namesIn(parent)
    .filter(name => !name.endsWith(temporaryEnding))
    .flatMap(name => {
      const path = join(parent, name);
      const found = statSync(path, { throwIfNoEntry: false });
      if (!found) return [];
      const files = found.isDirectory()
        ? namesIn(path).flatMap(file => statSync(join(path, file), { throwIfNoEntry: false }) ?? [])
        : [found];
      return { path, bytes: files.reduce((sum, { size }) => sum + size, 0), used: Math.max(0, ...files.map(({ atimeMs }) => atimeMs)) };
    });
}

/** Removes those entries of a folder that nobody can be writing any more. */
export function removeAbandoned(parent: string, isUnfinished: (name: string) => boolean, now = Date.now()): void {
  for (const name of namesIn(parent).filter(isUnfinished)) {
    const path = join(parent, name);
    const age = now - (statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? now);
    if (age > ABANDONED_MS) rmSync(path, { recursive: true, force: true });
  }
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    // Nothing was derived yet.
    return [];
  }
}
