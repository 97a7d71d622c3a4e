import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { ModelError } from "../gpu-runner/weights/model-error.ts";
import { SafetensorsError } from "../gpu-runner/weights/safetensors.ts";
import { AdminError } from "./admin-client.ts";
import { type Product, startProduct } from "./local/product.ts";
import { LocalState, StartError } from "./local/state.ts";

/** `npm start`: brings up edge, runner and playground with the embedded model, draws a first picture, says how to go on, and ends with Ctrl-C. */
async function main(): Promise<void> {
  const began = performance.now();
  const state = new LocalState();
  const unlock = state.lock();
  process.once("exit", () => {
    state.endProcesses();
    unlock();
  });
  const model = process.env.ATELIER_MODEL ?? fileURLToPath(new URL("../models/pocket", import.meta.url));
  if (!existsSync(model)) throw new StartError(`There is no model folder at ${model}.`);
  let product: Product | undefined;
  let stopping: Promise<void> | undefined;
  const stop = () => {
    stopping ??= (product?.stop() ?? Promise.resolve()).then(() => process.exit(0));
    return stopping;
  };
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, stop);

  product = await startProduct(state, { port: Number(process.env.ATELIER_PORT ?? 8787), models: [model], say: line => console.log(line) });
  const running = product;
  const seconds = await firstPicture(product).catch(async error => {
    await running.stop();
    throw error;
  });
  console.log(`First picture after ${((performance.now() - began) / 1000).toFixed(1)} s; drawing it took ${seconds.toFixed(1)} s.\n`);
  console.log(welcome(product));
  const ended = await Promise.race([product.edge.ended.then(() => "edge"), product.runner.ended.then(() => "runner")]);
  if (stopping) return stopping;
  await product.stop();
  throw new StartError(`The ${ended} ended unexpectedly; ${state.path("logs", `${ended}.log`)} says more.`);
}

/** Asks for a picture through the public API, as any client would. @returns seconds until it was there. */
async function firstPicture({ url, key }: Product): Promise<number> {
  const began = performance.now();
  const answer = await fetch(`${url}/v1/generations`, {
    method: "POST",
    headers: { Authorization: `Bearer ${key}`, "Content-Type": "application/json", Prefer: "wait=60" },
    body: JSON.stringify({ prompt: "a red cube, on a green floor", seed: 1, cache: "fresh" }),
  });
  const body = await answer.text();
  if (!answer.ok || !body.includes('"status":"succeeded"'))
    throw new StartError(`The first picture failed (HTTP ${answer.status}): ${body.slice(0, 500)}`);
  return (performance.now() - began) / 1000;
}

function welcome({ url, key }: Product): string {
  return `Playground   ${url}/
API key      ${key}
Reference    ${url}/docs

curl -s ${url}/v1/generations \\
  -H "Authorization: Bearer ${key}" \\
  -H "Content-Type: application/json" -H "Prefer: wait=60" \\
  -d '{"prompt": "a large red sphere, on a green floor at sunset", "seed": 7}'

Ctrl-C stops everything.`;
}

main().catch(error => {
  const expected = [StartError, AdminError, ModelError, SafetensorsError].some(type => error instanceof type);
  console.error(expected ? error.message : error);
  process.exit(1);
});
