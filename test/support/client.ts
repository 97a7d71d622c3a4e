import type { z } from "zod";
import { generationViewSchema, isTerminal, jobViewSchema } from "../../shared/job.ts";

/** What the tests ask of the public API, with every answer parsed by the public schemas. */
export function client(url: string, key: string) {
  const call = (path: string, init: RequestInit = {}) =>
    fetch(`${url}${path}`, { ...init, headers: { Authorization: `Bearer ${key}`, "Content-Type": "application/json", ...init.headers } });

  const post = (body: object, headers: Record<string, string> = {}) =>
    call("/v1/generations", { method: "POST", body: JSON.stringify(body), headers });

  /** Posts and waits for the end. */
  const generate = async (body: object) => generationViewSchema.parse(await json(await post(body, { Prefer: "wait=60" })));

  /** Posts without waiting: 202 with the job. */
  const submit = async (body: object) => {
    const job = jobViewSchema.parse(await json(await post(body, { Prefer: "wait=0" })));
    return { id: job.generation, job };
  };

  const generation = async (id: string) => generationViewSchema.parse(await json(await call(`/v1/generations/${id}`)));
  const job = async (id: string) => jobViewSchema.parse(await json(await call(`/v1/jobs/${id}`)));
  const cancel = async (id: string) => jobViewSchema.parse(await json(await call(`/v1/jobs/${id}/cancel`, { method: "POST" })));

  /** Follows a job until `done` holds. */
  const until = async (id: string, done: (view: z.infer<typeof jobViewSchema>) => boolean, timeoutMs = 60_000) => {
    for (const end = Date.now() + timeoutMs; Date.now() < end; await new Promise(resolve => setTimeout(resolve, 50))) {
      const view = await job(id);
      if (done(view)) return view;
    }
    throw new Error(`${id} after ${timeoutMs} ms: ${JSON.stringify(await job(id))}`);
  };
  const ended = (id: string, timeoutMs?: number) => until(id, view => isTerminal(view.status), timeoutMs);

  /** The file of a picture by its signed URL, as a page would load it. */
  const file = async (picture: { url: string | null }) => {
    const answer = await fetch(new URL(picture.url ?? "", url));
    if (!answer.ok) throw new Error(`HTTP ${answer.status} for a picture`);
    return Buffer.from(await answer.arrayBuffer());
  };

  return { call, post, generate, submit, generation, job, cancel, until, ended, file };
}

async function json(answer: Response): Promise<unknown> {
  const text = await answer.text();
  if (!answer.ok) throw new Error(`HTTP ${answer.status}: ${text}`);
  return JSON.parse(text);
}

/** Value of a counter of a runner's /metrics, summed over its labels. */
export async function metric(runnerUrl: string, name: string, labels = ""): Promise<number> {
  const lines = (await (await fetch(`${runnerUrl}/metrics`)).text()).split("\n");
  const matching = lines.filter(line => line.startsWith(name) && !line.startsWith("#") && line.includes(labels));
  return matching.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
}
