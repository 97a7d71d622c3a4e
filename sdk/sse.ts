/** One message of a text/event-stream. */
export interface SseMessage {
  readonly id: string | undefined;
  readonly event: string;
  readonly data: string;
  /** Milliseconds to wait before connecting again, where the server says so. */
  readonly retry: number | undefined;
}

/**
 * The messages of a text/event-stream (HTML standard, section 9.2.6). It ends where the connection does, also where that breaks:
 * the caller resumes after the last id. A message that is cut in half is dropped.
 */
export async function* readSse(body: ReadableStream<Uint8Array>): AsyncGenerator<SseMessage, void, void> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(() => ({ done: true, value: undefined }) as const);
      if (done) return;
      const blocks = (rest + decoder.decode(value, { stream: true })).replaceAll("\r\n", "\n").split("\n\n");
      rest = blocks.pop() ?? "";
      for (const block of blocks) yield parseBlock(block);
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

function parseBlock(block: string): SseMessage {
  const values = (name: string) =>
    block
      .split("\n")
      .filter(line => line.startsWith(`${name}:`))
      .map(line => line.slice(name.length + 1).replace(/^ /, ""));
  const retry = values("retry").at(-1);
  return {
    id: values("id").at(-1),
    event: values("event").at(-1) ?? "message",
    data: values("data").join("\n"),
    retry: retry !== undefined && /^\d+$/.test(retry) ? Number(retry) : undefined,
  };
}
