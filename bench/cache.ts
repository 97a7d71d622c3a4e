import { Agent, request } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { z } from "zod";
import { freePort } from "../scripts/local/processes.ts";
import { startLocalEdge, startProduct } from "../scripts/local/product.ts";
import { LocalState } from "../scripts/local/state.ts";
import type { Benchmark, Row } from "./benchmark.ts";
import type { Options } from "./options.ts";
import { cpuSecondsOf } from "./processes.ts";
import { atEnd, withScratchFolder } from "./scratch.ts";
import { median } from "./statistics.ts";

const CONCURRENCIES = [1, 8];
/** Hits whose calls are counted. */
const COUNTED = 50;

const callsSchema = z.object({ d1: z.int(), d1_statements: z.int(), r2: z.int(), queue: z.int(), durable_objects: z.int() });

/** Where hits go. */
interface Target {
  readonly url: string;
  readonly key: string;
}

export const cache: Benchmark = {
  about:
    "POST /v1/generations answered from the cache by the Worker in workerd, asked over HTTP from the same machine; CPU is workerd's, which also plays D1, R2 and wrangler's proxy here; calls are of one hit, counted in a second start of the Worker with its bindings wrapped",
  run: (options, say) =>
    withScratchFolder(async folder => {
      const state = new LocalState(folder);
      const done = atEnd(() => state.endProcesses());
      const rounds = await measure(state, options, say);
      const calls = await countCalls(state, options.model);
      done();
      return CONCURRENCIES.map(concurrency => ({
        ...summary(
          concurrency,
          rounds.filter(round => round.concurrency === concurrency),
        ),
        ...calls,
      }));
    }),
};

interface Round {
  readonly concurrency: number;
  readonly seconds: number;
  /** Milliseconds of each hit as the client sees it. */
  readonly latencies: readonly number[];
  readonly cpuSeconds: number | undefined;
}

/** Draws one picture, stops the runner, and asks for the picture again and again, at each concurrency in turns. */
async function measure(state: LocalState, { model, rounds = 3, seconds }: Options, say: (line: string) => void): Promise<Round[]> {
  const product = await startProduct(state, { port: await freePort(), models: [model] });
  try {
    await ask(product, new Agent(), false);
    await product.runner.stop();
    say("the picture is in the cache");
    await hitFor(product, 1, 1);
    const measured: Round[] = [];
    for (let round = 0; round < rounds; round++)
      for (const concurrency of CONCURRENCIES) {
        const before = cpuSecondsOf("workerd", product.edge.pid);
        const began = performance.now();
        const latencies = await hitFor(product, concurrency, seconds);
        const elapsed = (performance.now() - began) / 1000;
        const after = cpuSecondsOf("workerd", product.edge.pid);
        const cpuSeconds = before === undefined || after === undefined ? undefined : after - before;
        measured.push({ concurrency, seconds: elapsed, latencies, cpuSeconds });
      }
    return measured;
  } finally {
    await product.stop();
  }
}

/** Each of so many clients asks again as soon as it is answered. @returns milliseconds of each hit */
async function hitFor(target: Target, concurrency: number, seconds: number): Promise<number[]> {
  const agent = new Agent({ keepAlive: true, maxSockets: concurrency });
  const latencies: number[] = [];
  const end = performance.now() + seconds * 1000;
  const client = async () => {
    for (let now = performance.now(); now < end; now = performance.now()) {
      await ask(target, agent, true);
      latencies.push(performance.now() - now);
    }
  };
  await Promise.all(Array.from({ length: concurrency }, client));
  agent.destroy();
  return latencies;
}

/** Asks for the picture. @throws an Error where it is not there, or where it should come from the cache and does not */
function ask({ url, key }: Target, agent: Agent, cached: boolean): Promise<void> {
  const body = JSON.stringify({ prompt: "a red cube, on a green floor", seed: 7 });
  const headers = {
    authorization: `Bearer ${key}`,
    "content-type": "application/json",
    prefer: "wait=60",
    "content-length": Buffer.byteLength(body),
  };
  return new Promise((resolve, reject) => {
    const sent = request(`${url}/v1/generations`, { method: "POST", agent, headers }, answer => {
      let text = "";
      answer.setEncoding("utf8").on("data", part => {
        text += part;
      });
      answer.on("error", reject).on("end", () => {
        if (answer.statusCode === 201 && text.includes('"status":"succeeded"') && text.includes(`"cached":${cached}`)) resolve();
        else reject(new Error(`expected a picture with cached: ${cached}, got HTTP ${answer.statusCode}: ${text}`));
      });
    });
    sent.on("error", reject).end(body);
  });
}

/** Calls that one hit makes, counted by edge/metered.ts over many. */
async function countCalls(state: LocalState, model: string): Promise<Row> {
  const entry = fileURLToPath(new URL("../edge/metered.ts", import.meta.url));
  const { edge, key } = await startLocalEdge(state, { port: await freePort(), models: [model], entry });
  try {
    const target = { url: edge.url, key };
    const agent = new Agent({ keepAlive: true });
    // The first request of an isolate may look up what later ones remember.
    await ask(target, agent, true);
    const before = await callsSoFar(edge.url);
    for (let hit = 0; hit < COUNTED; hit++) await ask(target, agent, true);
    const after = await callsSoFar(edge.url);
    agent.destroy();
    const perHit = (kind: keyof typeof after) => (after[kind] - before[kind]) / COUNTED;
    return {
      "D1 calls": perHit("d1"),
      "D1 statements": perHit("d1_statements"),
      "R2 calls": perHit("r2"),
      "queue sends": perHit("queue"),
      "object calls": perHit("durable_objects"),
    };
  } finally {
    await edge.stop();
  }
}

async function callsSoFar(url: string): Promise<z.infer<typeof callsSchema>> {
  // What a request leaves to do after its answer counts as well.
  await sleep(200);
  return callsSchema.parse(await (await fetch(`${url}/bench/calls`)).json());
}

function summary(concurrency: number, rounds: readonly Round[]): Row {
  const rates = rounds.map(({ latencies, seconds }) => latencies.length / seconds);
  const cpu = rounds.flatMap(({ cpuSeconds, latencies }) => (cpuSeconds === undefined ? [] : [(cpuSeconds * 1000) / latencies.length]));
  return {
    clients: concurrency,
    "hits/s": median(rates),
    "min hits/s": Math.min(...rates),
    "median ms": median(rounds.flatMap(({ latencies }) => latencies)),
    ...(cpu.length > 0 && { "CPU ms/hit": median(cpu) }),
  };
}
