import { eq } from "drizzle-orm";
import { AtelierError } from "../shared/errors.ts";
import { type ModelManifest, modelManifestSchema } from "../shared/model.ts";
import type { Database } from "./database.ts";
import { log } from "./log.ts";
import { models } from "./schema.ts";

/** The manifest as it is now understood; what an older version has registered has to be registered again. */
function readManifest({ name, manifest }: { name: string; manifest: unknown }): ModelManifest | undefined {
  const read = modelManifestSchema.safeParse(manifest);
  if (!read.success) log("warn", "a model's manifest is of another version: register it again", { model: name });
  return read.data;
}

/** The models that are served. They belong to the operator: every tenant sees the same. */
export async function listModels(db: Database): Promise<ModelManifest[]> {
  const rows = await db.select({ name: models.name, manifest: models.manifest }).from(models).orderBy(models.name);
  return rows.flatMap(row => readManifest(row) ?? []);
}

/** The manifest of a model, or undefined where none has this name. */
export async function findModel(db: Database, name: string): Promise<ModelManifest | undefined> {
  const [row] = await db.select({ name: models.name, manifest: models.manifest }).from(models).where(eq(models.name, name));
  return row && readManifest(row);
}

/** The manifest of a model that a request names. @throws AtelierError invalid_request that lists the models there are */
export async function modelOf(db: Database, name: string, field: string): Promise<ModelManifest> {
  const manifest = await findModel(db, name);
  if (manifest) return manifest;
  const names = (await listModels(db)).map(model => model.name);
  const expected = names.length === 0 ? "a model, but none is registered" : `one of ${names.join(", ")}`;
  throw new AtelierError("invalid_request", undefined, { errors: [{ field, expected, got: JSON.stringify(name) }] });
}
