import { adapters } from "./adapters.ts";
import type { Benchmark } from "./benchmark.ts";
import { cache } from "./cache.ts";
import { load } from "./load.ts";
import { pocket } from "./pocket.ts";
import { start } from "./start.ts";
import { train } from "./train.ts";
import { unet } from "./unet.ts";

export const benchmarks = { unet, adapters, load, pocket, cache, start, train } as const satisfies Record<string, Benchmark>;
export type BenchmarkName = keyof typeof benchmarks;
export const benchmarkNames = Object.keys(benchmarks) as BenchmarkName[];
