/** What a log line may carry: ids, counts, codes, times. Never a prompt, key, token or signed URL. */
export type LogFields = Readonly<Record<string, string | number | boolean | null | undefined>>;
export type LogLevel = "debug" | "info" | "warn" | "error";

/** Writes one JSON object on one line. Pass `request_id` wherever it is known: it is what joins edge, dispatcher and runner logs. */
export function log(level: LogLevel, message: string, fields: LogFields = {}): void {
  console[level](JSON.stringify({ time: new Date().toISOString(), level, message, ...fields }));
}

/**
 * What a log may say of an unexpected error. Two kinds of messages quote data and are left out: drizzle's carries a statement's parameters
 * (its cause says what D1 objected to), and a SyntaxError a piece of the text that does not parse.
 */
export function errorFields(error: unknown): LogFields {
  if (!(error instanceof Error)) return { error: typeof error };
  const source = error.cause instanceof Error ? error.cause : error;
  const quotes = source instanceof SyntaxError || source.message.startsWith("Failed query");
  const frames = (error.stack ?? "").split("\n").filter(line => /^\s+at /.test(line));
  return { error: source.name, ...(!quotes && { detail: source.message.slice(0, 300) }), stack: frames.slice(0, 8).join("\n") };
}
