/** A model's file that is missing, malformed or unsupported. The message is one sentence fit for an operator. */
export class ModelError extends Error {
  readonly file: string;
  /** A tensor name, a config key, or a part of the file. */
  readonly key: string;
  readonly expected: string;
  readonly got: string;
  constructor(file: string, key: string, expected: string, got: string) {
    super(`${file}: ${key}: expected ${expected}, got ${got}`);
    this.name = "ModelError";
    this.file = file;
    this.key = key;
    this.expected = expected;
    this.got = got;
  }
}
