import { type JobEvent, jobEventSchema, terminalStatuses } from "../../shared/job.ts";

/** An event with its number. Numbers rise within a job, and a client resumes after the last one it saw. */
export interface StoredEvent {
  readonly id: number;
  readonly event: JobEvent;
}

export interface PictureProgress {
  readonly index: number;
  readonly step: number;
  readonly steps: number;
}

/** Most events kept of one job. Its worst case without pruning is (pictures x steps x attempts) progress events. */
export const MAX_EVENTS = 500;
/** Most sample pictures kept of a training. */
export const MAX_SAMPLES = 64;
/** Events handed out by one read, so that a slow stream never holds them all. */
const READ_LIMIT = 50;

/**
 * The events of one job in its object's SQLite.
 * `once` names what may happen only once (a second insert changes nothing), so every append is safe to repeat.
 */
const schema = `
  CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    once TEXT UNIQUE,
    type TEXT NOT NULL,
    idx INTEGER,
    body TEXT NOT NULL,
    preview TEXT
  );
  CREATE INDEX IF NOT EXISTS events_progress ON events (idx, id) WHERE type = 'progress';`;

export class EventStore {
  readonly #sql: SqlStorage;

  constructor(sql: SqlStorage) {
    this.#sql = sql;
    sql.exec(schema);
  }

  /**
   * Appends events; whatever comes after a terminal one is ignored.
   * @throws an Error that names event and field when one is not of shared/job.ts; then none is stored.
   */
  append(events: readonly unknown[], at: string): void {
    const parsed = events.map((event, position) => parseEvent(event, position, at));
    for (const event of parsed) {
      if (this.ended()) return;
      this.#insert(event);
    }
    this.#prune();
  }

  /** Events after a number, oldest first, at most some dozens at a time. */
  after(id: number): StoredEvent[] {
    return this.#sql
      .exec<{ id: number; body: string; preview: string | null }>(
        "SELECT id, body, preview FROM events WHERE id > ? ORDER BY id LIMIT ?",
        id,
        READ_LIMIT,
      )
      .toArray()
      .map(row => ({
        id: row.id,
        event: jobEventSchema.parse({ ...JSON.parse(row.body), ...(row.preview !== null && { preview: row.preview }) }),
      }));
  }

  /** Number of the last event; 0 when there is none. */
  last(): number {
    return this.#sql.exec<{ id: number }>("SELECT coalesce(max(id), 0) AS id FROM events").one().id;
  }

  ended(): boolean {
    return this.#sql.exec("SELECT 1 FROM events WHERE once = 'terminal'").toArray().length > 0;
  }

  /** Latest progress per picture index; a training's step is that of index 0. */
  progress(): PictureProgress[] {
    return this.#sql
      .exec<{ body: string }>(
        "SELECT body FROM events WHERE id IN (SELECT max(id) FROM events WHERE type IN ('progress', 'step') GROUP BY type, idx) ORDER BY idx",
      )
      .toArray()
      .map(row => jobEventSchema.parse(JSON.parse(row.body)))
      .flatMap(event => {
        if (event.type === "step") return [{ index: 0, step: event.step, steps: event.steps }];
        return event.type === "progress" ? [{ index: event.index, step: event.step, steps: event.steps }] : [];
      });
  }

  #insert(event: JobEvent): void {
    const { preview, ...body } = event.type === "progress" || event.type === "sample" ? event : { ...event, preview: undefined };
    const index = "index" in event ? event.index : null;
    // A preview is worth something only until the next one: one a picture is kept. The samples of a training tell how it went.
    if (event.type === "progress" && preview !== undefined)
      this.#sql.exec("UPDATE events SET preview = NULL WHERE type = 'progress' AND idx = ? AND preview IS NOT NULL", index);
    if (isEnd(event)) this.#sql.exec("UPDATE events SET preview = NULL WHERE type = 'progress' AND preview IS NOT NULL");
    this.#sql.exec(
      "INSERT INTO events (once, type, idx, body, preview) VALUES (?, ?, ?, ?, ?) ON CONFLICT (once) DO NOTHING",
      onceKey(event),
      event.type,
      index,
      JSON.stringify(body),
      preview ?? null,
    );
  }

  /**
   * Old progress and steps go first, then the rest of a training's past, then old leases. The latest progress of each picture, and what happens
   * once a job or picture, stays.
   */
  #prune(): void {
    this.#sql.exec(
      "DELETE FROM events WHERE type = 'sample' AND id <= (SELECT id FROM events WHERE type = 'sample' ORDER BY id DESC LIMIT 1 OFFSET ?)",
      MAX_SAMPLES,
    );
    this.#sql.exec(
      `DELETE FROM events WHERE id IN (
         SELECT id FROM events
         WHERE type IN ('progress', 'step', 'validation', 'sample', 'phase', 'running')
           AND id NOT IN (SELECT max(id) FROM events WHERE type IN ('progress', 'step') GROUP BY type, idx)
         ORDER BY type = 'running', type IN ('validation', 'sample', 'phase'), id
         LIMIT max(0, (SELECT count(*) FROM events) - ?))`,
      MAX_EVENTS,
    );
  }
}

function parseEvent(event: unknown, position: number, at: string): JobEvent {
  const result = jobEventSchema.safeParse(typeof event === "object" ? { ...event, at } : event);
  if (result.success) return result.data;
  const issues = result.error.issues.map(({ path, message }) => `${path.join(".")}: ${message}`);
  throw new Error(`job events: event ${position}: ${issues.join("; ")}`);
}

export function isEnd(event: JobEvent): boolean {
  return (terminalStatuses as readonly string[]).includes(event.type);
}

function onceKey(event: JobEvent): string | null {
  switch (event.type) {
    case "queued":
      return "queued";
    case "running":
      return `running:${event.execution}:${event.epoch}`;
    case "picture":
      return `picture:${event.index}`;
    case "progress":
    case "step":
    case "validation":
    case "sample":
    case "phase":
      return null;
    default:
      return "terminal";
  }
}
