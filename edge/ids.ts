import { ulid } from "ulid";
import { type IdKind, idPrefixes } from "../shared/names.ts";

/** A new id: its kind's prefix and a ULID. */
export function newId(kind: IdKind): string {
  return `${idPrefixes[kind]}_${ulid()}`;
}

/** A new request id, which joins the log lines of edge, dispatcher and runner. */
export function newRequestId(): string {
  return `req_${ulid()}`;
}
