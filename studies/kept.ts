import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import type { z } from "zod";

/** The finished parts of a study: each is computed once, and kept as JSON beside its pictures and files. */
export class Kept {
  readonly folder: string;
  constructor(folder: string) {
    this.folder = folder;
  }

  /** What was kept under a name, else what `make` gives, kept from then on. */
  async part<T>(name: string, schema: z.ZodType<T>, make: () => Promise<T>): Promise<T> {
    const file = `${name}.json`;
    const found = this.read(file);
    if (found) return schema.parse(JSON.parse(found.toString()));
    const made = schema.parse(await make());
    this.write(file, Buffer.from(`${JSON.stringify(made, null, 1)}\n`));
    return made;
  }

  read(file: string): Buffer | undefined {
    const path = join(this.folder, file);
    return existsSync(path) ? readFileSync(path) : undefined;
  }

  /** Whole or not at all. */
  write(file: string, bytes: Uint8Array): void {
    const path = join(this.folder, file);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(`${path}.part`, bytes);
    renameSync(`${path}.part`, path);
  }
}
