/** What a log line may carry: ids, counts, codes, times. Never a prompt, key, token or signed URL. */
export type LogFields = Readonly<Record<string, string | number | boolean | null | undefined>>;
export type LogLevel = "debug" | "info" | "warn" | "error";

/** Writes one JSON object on one line. Pass `request_id` wherever it is known: it is what joins edge, dispatcher and runner logs. */
export function log(level: LogLevel, message: string, fields: LogFields = {}): void {
  console[level](JSON.stringify({ time: new Date().toISOString(), level, message, ...fields }));
}
