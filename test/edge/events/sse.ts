/** A parsed event of a text/event-stream, or a comment. */
export interface SseEvent {
  readonly id: number;
  readonly event: string;
  readonly data: unknown;
}

/** Splits a text/event-stream into events, comments and retry hints. */
export function parseSse(text: string): { events: SseEvent[]; comments: string[]; retries: number[] } {
  const blocks = text.split("\n\n").filter(block => block !== "");
  const field = (block: string, name: string) =>
    block
      .split("\n")
      .find(line => line.startsWith(`${name}: `))
      ?.slice(name.length + 2);
  return {
    events: blocks
      .filter(block => field(block, "data") !== undefined)
      .map(block => ({
        id: Number(field(block, "id")),
        event: field(block, "event") ?? "message",
        data: JSON.parse(field(block, "data") ?? "") as unknown,
      })),
    comments: blocks.filter(block => block.startsWith(":")),
    retries: blocks.flatMap(block => field(block, "retry") ?? []).map(Number),
  };
}

/** Reads until `enough` says so or the stream ends. */
export async function readUntil(reader: ReadableStreamDefaultReader<Uint8Array>, enough: (text: string) => boolean): Promise<string> {
  const decoder = new TextDecoder();
  let text = "";
  while (!enough(text)) {
    const { done, value } = await reader.read();
    if (done) break;
    text += decoder.decode(value, { stream: true });
  }
  return text;
}
