import { cpus, loadavg, platform, release, totalmem } from "node:os";

export interface Machine {
  readonly processor: string;
  readonly cores: number;
  readonly memory_gb: number;
  readonly system: string;
  readonly node: string;
  /** Processes that wanted to run, on average over the last minute before the start: above 0 the figures are disturbed. */
  readonly load: number;
}

/** Where the figures come from. */
export function thisMachine(): Machine {
  return {
    processor: cpus()[0]?.model.trim() ?? "unknown",
    cores: cpus().length,
    memory_gb: Math.round(totalmem() / 2 ** 30),
    system: `${platform()} ${release()}`,
    node: process.versions.node,
    load: Number(loadavg()[0]!.toFixed(2)),
  };
}
