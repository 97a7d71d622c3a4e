/** A file from outside that breaks its format. `key` is a tensor name, a config key, or a part of the file. The message is one sentence. */
export class FileError extends Error {
  readonly key: string;
  readonly expected: string;
  readonly got: string;
  constructor(key: string, expected: string, got: string) {
    const place = key === "" ? '""' : key;
    super(`${shorten(place, 200)}: expected ${shorten(expected, 400)}, got ${shorten(got, 200)}`);
    this.name = "FileError";
    this.key = place;
    this.expected = expected;
    this.got = got;
  }
}

/** Names in files from strangers may be as long as the file. */
export function shorten(text: string, length: number): string {
  return text.length > length ? `${text.slice(0, length)}…` : text;
}
