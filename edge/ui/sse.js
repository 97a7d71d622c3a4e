/** @typedef {{ id: string, data: string, retry: number | undefined }} ServerEvent `id` is the last one seen, `retry` in milliseconds */

/**
 * Reads a stream of server-sent events (WHATWG HTML, 9.2). EventSource would do it, but cannot send an Authorization header.
 * @param {ReadableStream<Uint8Array<ArrayBuffer>>} body
 * @returns {AsyncGenerator<ServerEvent>}
 */
export async function* serverEvents(body) {
  let id = "";
  /** @type {string[]} */
  let data = [];
  /** @type {number | undefined} */
  let retry;
  for await (const line of lines(body)) {
    if (line === "") {
      if (data.length || retry !== undefined) yield { id, data: data.join("\n"), retry };
      data = [];
      retry = undefined;
      continue;
    }
    const [, name, value = ""] = /^([^:]*)(?:: ?(.*))?$/s.exec(line) ?? [];
    if (name === "data") data.push(value);
    else if (name === "id" && !value.includes("\0")) id = value;
    else if (name === "retry" && /^\d+$/.test(value)) retry = Number(value);
  }
}

/**
 * The lines of a stream of UTF-8; an unfinished last line is dropped, as the standard wants it.
 * @param {ReadableStream<Uint8Array<ArrayBuffer>>} body
 * @returns {AsyncGenerator<string>}
 */
async function* lines(body) {
  let rest = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let chunk = await reader.read(); !chunk.done; chunk = await reader.read()) {
      rest += chunk.value;
      // A carriage return at the very end may be half of a line break: it waits for the next chunk.
      const parts = rest.split(/\r\n|\n|\r(?!$)/);
      rest = parts.pop() ?? "";
      yield* parts;
    }
  } finally {
    await reader.cancel();
  }
}
