import type { JobEvent } from "../../shared/job.ts";
import { isEnd, type StoredEvent } from "./event-store.ts";

/** How streams keep time, in milliseconds. */
export interface StreamTimes {
  /** Longest silence; then a comment keeps proxies from closing the connection. */
  readonly comment_ms: number;
  /** A stream ends after this, because a client that went away is not reliably seen (workerd#4185). It resumes where it was. */
  readonly stream_ms: number;
  /** What a client should wait before it comes back. */
  readonly retry_ms: number;
}

/** What a stream follows: a job's events as they come. */
export interface Followed {
  /** Events after a number, oldest first; some dozens at most. */
  after(id: number): StoredEvent[];
  /** Resolves when something was appended, or after `ms` with false. */
  changed(ms: number): Promise<boolean>;
  /** Asks D1 whether the job has ended unnoticed. */
  recover(): Promise<void>;
}

export const eventStreamHeaders = {
  "content-type": "text/event-stream; charset=utf-8",
  "cache-control": "no-store",
  "x-content-type-options": "nosniff",
  "x-accel-buffering": "no",
} as const;

/** Number in a `Last-Event-ID` header. What is not one counts as absent: the stream then starts at the first event that is kept. */
export function lastEventId(header: string | null | undefined): number {
  return header && /^\d{1,15}$/.test(header) ? Number(header) : 0;
}

/** One event in the text/event-stream format (HTML standard, section 9.2). */
export function formatEvent({ id, event }: StoredEvent): string {
  return `id: ${id}\nevent: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`;
}

/** A whole stream that holds nothing but a job's end. */
export function endedStream(event: JobEvent, after: number): Response {
  return new Response(formatEvent({ id: after + 1, event }), { headers: eventStreamHeaders });
}

/** A stream of everything after `after` until the job's end, or until the stream's time is over. */
export function eventStream(followed: Followed, after: number, times: StreamTimes): Response {
  const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
  const writer = writable.getWriter();
  const encoder = new TextEncoder();
  // A write waits for the reader, so a slow client holds one event in memory; it fails when the reader is gone.
  const write = (text: string) => writer.write(encoder.encode(text));
  follow(followed, after, times, write).then(
    () => writer.close().catch(() => undefined),
    error => writer.abort(error).catch(() => undefined),
  );
  return new Response(readable, { headers: eventStreamHeaders });
}

async function follow(followed: Followed, after: number, times: StreamTimes, write: (text: string) => Promise<void>): Promise<void> {
  const end = Date.now() + times.stream_ms;
  const retry = `retry: ${times.retry_ms}\n\n`;
  await write(retry);
  let last = after;
  for (;;) {
    const events = followed.after(last);
    for (const stored of events) {
      await write(formatEvent(stored));
      last = stored.id;
      if (isEnd(stored.event)) return;
    }
    if (events.length > 0) continue;
    const left = end - Date.now();
    if (left <= 0) return write(retry);
    if (await followed.changed(Math.min(times.comment_ms, left))) continue;
    await followed.recover();
    await write(": keep-alive\n\n");
  }
}
