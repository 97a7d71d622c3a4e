import { PROTOCOL_VERSION } from "../../shared/engine.ts";
import { type Lease, type RunnerMessage, runnerMessageSchema } from "../../shared/protocol.ts";
import { type LogFields, log } from "../log.ts";
import { ready } from "./instances.ts";
import type { Sockets } from "./sockets.ts";
import { accept, complete, executionRow, fail, handBack, heartbeat } from "./store.ts";
import type { Times } from "./times.ts";

/** Longest message of a runner, in characters: a hello with thousands of models fits. */
const MAX_MESSAGE_LENGTH = 1 << 20;

/** The message, or in words what is wrong with it. Nothing of its content is quoted. */
export function parseMessage(data: string | ArrayBuffer): RunnerMessage | string {
  if (typeof data !== "string") return "expected a text message, got a binary one";
  if (data.length > MAX_MESSAGE_LENGTH) return `expected at most ${MAX_MESSAGE_LENGTH} characters, got ${data.length}`;
  let input: unknown;
  try {
    input = JSON.parse(data);
  } catch {
    return "expected JSON";
  }
  const parsed = runnerMessageSchema.safeParse(input);
  if (parsed.success) return parsed.data;
  return parsed.error.issues
    .map(({ path, message }) => `${path.join(".") || "message"}: ${message}`)
    .join("; ")
    .slice(0, 300);
}

/** What the answers to a runner's messages need. */
export interface Conversation {
  readonly sql: SqlStorage;
  readonly sockets: Sockets;
  readonly times: Times;
  /** A lease was accepted: its jobs run. */
  running(lease: Lease): void;
}

/** Every message but `hello`, from an instance that has said hello. */
export type Said = Exclude<RunnerMessage, { type: "hello" }>;
type Answers = {
  [T in Said["type"]]: (dispatcher: Conversation, instance: string, message: Extract<Said, { type: T }>, now: number) => void;
};

const answers = {
  ready: ({ sql }, instance, { n, resident }) => ready(sql, instance, n, resident),
  accept: ({ sql, sockets, running }, instance, { leases }, now) => {
    for (const lease of leases) {
      const taken = accept(sql, lease, instance, now);
      if (taken === "first") running(lease);
      if (taken === "over") sockets.send(instance, { v: PROTOCOL_VERSION, type: "cancel", leases: [lease] });
    }
  },
  reject: ({ sql, times }, instance, { leases, reason }, now) => {
    for (const lease of leases) {
      if (handBack(sql, lease, "rejected", instance, now, times)) logLease(sql, "warn", "grant rejected", instance, lease, { reason });
    }
  },
  heartbeat: ({ sql, sockets }, instance, { leases }, now) => {
    const over = heartbeat(sql, instance, leases, now);
    if (over.length > 0) sockets.send(instance, { v: PROTOCOL_VERSION, type: "cancel", leases: over });
  },
  complete: ({ sql, sockets }, instance, { execution, epoch, result }, now) => {
    const taken = complete(sql, { execution, epoch }, result, instance, now);
    if (taken === "committed") sockets.send(instance, { v: PROTOCOL_VERSION, type: "committed", execution, epoch });
    if (taken === "refused")
      sockets.send(instance, { v: PROTOCOL_VERSION, type: "refused", execution, epoch, reason: "the lease is over" });
  },
  fail: ({ sql, times }, instance, { execution, epoch, code, message, retryable }, now) => {
    const lease = { execution, epoch };
    const taken = fail(sql, lease, { code, message }, retryable, instance, now, times);
    if (taken) logLease(sql, "warn", "attempt failed", instance, lease, { code, retryable });
  },
  release: ({ sql, times }, instance, { leases }, now) => {
    for (const lease of leases) {
      if (handBack(sql, lease, "released", instance, now, times)) logLease(sql, "info", "lease released", instance, lease);
    }
  },
} as const satisfies Answers;

/** Does what the message says, and answers it. */
export function answer(dispatcher: Conversation, instance: string, message: Said, now: number): void {
  // The table's type ties each handler to its message; a lookup by a union loses that tie.
  const handle = answers[message.type] as (dispatcher: Conversation, instance: string, message: Said, now: number) => void;
  handle(dispatcher, instance, message, now);
}

/** A log line about a lease, with the request id that joins it to everything else. */
export function logLease(
  sql: SqlStorage,
  level: "info" | "warn" | "error",
  text: string,
  instance: string,
  { execution, epoch }: Lease,
  fields: LogFields = {},
): void {
  log(level, text, { execution, epoch, instance, request_id: executionRow(sql, execution)?.request_id ?? null, ...fields });
}
