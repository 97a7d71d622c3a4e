import { and, desc, eq, getTableColumns, lt, sql } from "drizzle-orm";
import type { Database } from "./database.ts";
import { datasetFiles, datasetItems, datasets, executions, jobPictures, jobs, trainings } from "./schema.ts";

/** A tenant's part of D1 that is about datasets and trainings. */

export type DatasetRow = typeof datasets.$inferSelect;
export type DatasetFileRow = typeof datasetFiles.$inferSelect;
export type DatasetItemRow = typeof datasetItems.$inferSelect;
export type TrainingRow = typeof trainings.$inferSelect;

export interface StoredDataset {
  readonly dataset: DatasetRow;
  /** By hash. */
  readonly files: readonly DatasetFileRow[];
  readonly items: readonly DatasetItemRow[];
}

/** A training about to be accepted: one job, one execution. All three have the same ULID. */
export interface NewTraining {
  readonly id: string;
  readonly job: string;
  readonly execution: string;
  readonly name: string;
  readonly dataset: string;
  readonly pool: string;
  readonly modelHash: string;
  readonly request: unknown;
  readonly seed: number;
  /** Canonical, and its SHA-256. */
  readonly params: string;
  readonly hash: string;
  readonly inputs: unknown;
  readonly requestId: string;
  readonly createdAt: number;
  readonly deadlineAt: number;
}

/** Everything that a client's request may read or write of datasets and trainings, seen through one tenant. */
export function tenantDatasets(db: Database, tenant: string) {
  return { ...tenantSets(db, tenant), ...tenantTrainings(db, tenant) };
}

function tenantSets(db: Database, tenant: string) {
  const own = (id: string) => and(eq(datasets.tenant_id, tenant), eq(datasets.id, id));
  const itemOf = (id: string, sha256: string) =>
    and(eq(datasetItems.tenant_id, tenant), eq(datasetItems.dataset_id, id), eq(datasetItems.sha256, sha256));

  return {
    /** Adds a dataset whose files lie in the bucket. One that is there already under this id stays as it is. */
    async createDataset(
      dataset: Pick<DatasetRow, "id" | "name" | "created_at">,
      files: readonly Omit<DatasetFileRow, "dataset_id" | "tenant_id">[],
      items: readonly Omit<DatasetItemRow, "dataset_id" | "tenant_id">[],
    ): Promise<void> {
      const value = (name: string) => sql.raw(`e.value ->> '${name}'`);
      await db.batch([
        db
          .insert(datasets)
          .values({ ...dataset, tenant_id: tenant })
          .onConflictDoNothing(),
        db
          .insert(datasetFiles)
          .select(
            sql`select ${dataset.id}, ${value("sha256")}, ${tenant}, ${value("bytes")}, ${value("media_type")}, ${value("width")}, ${value("height")}
                from json_each(${JSON.stringify(files)}) e where true`,
          )
          .onConflictDoNothing(),
        db
          .insert(datasetItems)
          .select(
            sql`select ${dataset.id}, ${value("sha256")}, ${tenant}, ${value("caption")}, ${value("split")}, ${value("mask")}, ${value("condition")}, ${value("concept")}
                from json_each(${JSON.stringify(items)}) e where true`,
          )
          .onConflictDoNothing(),
      ]);
    },

    async dataset(id: string): Promise<StoredDataset | undefined> {
      const [[dataset], files, items] = await db.batch([
        db.select().from(datasets).where(own(id)),
        db
          .select()
          .from(datasetFiles)
          .where(and(eq(datasetFiles.tenant_id, tenant), eq(datasetFiles.dataset_id, id)))
          .orderBy(datasetFiles.sha256),
        db
          .select()
          .from(datasetItems)
          .where(and(eq(datasetItems.tenant_id, tenant), eq(datasetItems.dataset_id, id)))
          .orderBy(datasetItems.sha256),
      ]);
      return dataset && { dataset, files, items };
    },

    /** Datasets, newest first, older than the one named, with the number of their pictures. */
    listDatasets(limit: number, before?: string): Promise<(DatasetRow & { pictures: number })[]> {
      const pictures = sql<number>`(select count(*) from ${datasetItems} i where i.dataset_id = ${datasets.id})`;
      return db
        .select({ ...getTableColumns(datasets), pictures })
        .from(datasets)
        .where(and(eq(datasets.tenant_id, tenant), before === undefined ? undefined : lt(datasets.id, before)))
        .orderBy(desc(datasets.id))
        .limit(limit);
    },

    /** Changes what is said of a picture; undefined where there is none. */
    async changeItem(
      id: string,
      sha256: string,
      changes: Partial<Omit<DatasetItemRow, "dataset_id" | "tenant_id" | "sha256">>,
    ): Promise<DatasetItemRow | undefined> {
      const [row] =
        Object.keys(changes).length === 0
          ? await db.select().from(datasetItems).where(itemOf(id, sha256))
          : await db.update(datasetItems).set(changes).where(itemOf(id, sha256)).returning();
      return row;
    },

    /** Whether there was one. Its objects are left to the sweep, since other datasets and live trainings may need them. */
    async deleteDataset(id: string): Promise<boolean> {
      return (await db.delete(datasets).where(own(id)).returning({ id: datasets.id })).length > 0;
    },
  };
}

function tenantTrainings(db: Database, tenant: string) {
  const own = (id: string) => and(eq(trainings.tenant_id, tenant), eq(trainings.id, id));

  return {
    /** Accepts a training in one transaction. One that was accepted before under this id stays as it was. */
    async acceptTraining(training: NewTraining): Promise<void> {
      const { id, job, execution, pool, modelHash, requestId, createdAt, hash } = training;
      await db.batch([
        db
          .insert(trainings)
          .values({ id, tenant_id: tenant, name: training.name, dataset_id: training.dataset, created_at: createdAt })
          .onConflictDoNothing(),
        db
          .insert(jobs)
          .values({
            ...{ id: job, tenant_id: tenant, kind: "training", pool, model_hash: modelHash, request: training.request },
            ...{ request_id: requestId, status: "active", created_at: createdAt, deadline_at: training.deadlineAt },
          })
          .onConflictDoNothing(),
        db
          .insert(executions)
          .values({
            ...{ id: execution, kind: "training", tenant_id: tenant, pool, model_hash: modelHash, params: training.params },
            // A batch of its own, and a result that depends on when it was asked for: nothing joins it.
            ...{ request_hash: hash, params_sha256: hash, batch_key: "", exclusive: true, inputs: training.inputs },
            ...{ request_id: requestId, state: "active", created_at: createdAt },
          })
          .onConflictDoNothing(),
        db
          .insert(jobPictures)
          .values({
            ...{ job_id: job, idx: 0, tenant_id: tenant, seed: training.seed, request_hash: hash, execution_id: execution },
            ...{ state: "pending", cached: false },
          })
          .onConflictDoNothing(),
      ]);
    },

    async training(id: string): Promise<TrainingRow | undefined> {
      const [row] = await db.select().from(trainings).where(own(id));
      return row;
    },

    /** Trainings, newest first, older than the one named. */
    listTrainings(limit: number, before?: string): Promise<TrainingRow[]> {
      return db
        .select()
        .from(trainings)
        .where(and(eq(trainings.tenant_id, tenant), before === undefined ? undefined : lt(trainings.id, before)))
        .orderBy(desc(trainings.id))
        .limit(limit);
    },

    async deleteTraining(id: string): Promise<void> {
      await db.delete(trainings).where(own(id));
    },
  };
}

/** The training whose file a verified URL names: its signature stands for the tenant's permission. */
export async function signedTraining(db: Database, id: string): Promise<TrainingRow | undefined> {
  const [row] = await db.select().from(trainings).where(eq(trainings.id, id));
  return row;
}
