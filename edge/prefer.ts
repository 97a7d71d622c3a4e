export const MAX_WAIT_S = 60;

/**
 * Seconds to wait by a Prefer header (RFC 7240), at most 60; undefined where it asks for none.
 * A preference that does not parse is as absent, as the RFC has it.
 */
export function preferredWait(header: string | undefined): number | undefined {
  const [, seconds] = /(?:^|[,;])\s*wait\s*=\s*"?(\d{1,6})"?\s*(?:[,;]|$)/i.exec(header ?? "") ?? [];
  return seconds === undefined ? undefined : Math.min(Number(seconds), MAX_WAIT_S);
}
