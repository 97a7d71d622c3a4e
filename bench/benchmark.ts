/** What every benchmark is: one file, one line in `benchmarks.ts`. */
import type { Options } from "./options.ts";

/** One line of a benchmark's table. The columns' names carry the units. */
export type Row = Readonly<Record<string, string | number>>;

export interface Benchmark {
  /** What is measured, and under which conditions: the table's caption. */
  readonly about: string;
  /** @param say tells the reader of the terminal what is going on; it is no part of the result */
  run(options: Options, say: (line: string) => void): Promise<readonly Row[]>;
}
