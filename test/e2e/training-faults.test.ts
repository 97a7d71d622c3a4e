/** A training whose runner is killed goes on at another, from the last checkpoint that was uploaded, to the same bytes. */
import { readFileSync } from "node:fs";
import { afterEach, expect, test } from "vitest";
import { startRunner } from "../../scripts/local/runner.ts";
import { datasetViewSchema, type TrainingView, trainingViewSchema } from "../../shared/training-api.ts";
import { client } from "../support/client.ts";
import { pocket, quickTimes, startEdgeOnly } from "../support/product.ts";

const cleanups: (() => Promise<unknown> | unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

const steps = 60;

test("a runner is killed in the middle of a training: another goes on from its checkpoint and ends with the bytes of one that was left alone", async () => {
  const edge = await startEdgeOnly({ vars: quickTimes });
  cleanups.push(() => edge.stop());
  const api = client(edge.url, edge.key);
  const runner = async (name: string) => {
    const env = { ATELIER_THREADS: "1", ATELIER_CHECKPOINT_MS: "0" };
    const started = await startRunner(edge.state, { edgeUrl: edge.url, token: edge.token, models: [pocket], name, env });
    cleanups.push(() => started.stop(500));
    return started;
  };
  const log = (name: string) => readFileSync(edge.state.path(`logs/${name}.log`), "utf8");
  const view = async (id: string) => trainingViewSchema.parse(await (await api.call(`/v1/trainings/${id}`)).json());
  const until = async (id: string, holds: (view: TrainingView) => boolean): Promise<TrainingView> => {
    for (;;) {
      const seen = await view(id);
      if (holds(seen)) return seen;
      await new Promise(resolve => setTimeout(resolve, 100));
    }
  };
  const isOver = ({ job }: TrainingView) => job.finished_at !== null;

  const first = await runner("first");
  const { pictures } = await api.generate({ prompt: "a red cube", steps: 4, num_images: 2, seed: 1 });
  const form = new FormData();
  form.set("name", "cubes");
  for (const [i, picture] of pictures.entries()) form.append("file", new File([new Uint8Array(await api.file(picture))], `${i}.png`));
  form.set("captions", JSON.stringify({ "0.png": "a zxq cube", "1.png": "a zxq cube" }));
  const headers = { Authorization: `Bearer ${edge.key}` };
  const dataset = datasetViewSchema.parse(await (await fetch(`${edge.url}/v1/datasets`, { method: "POST", headers, body: form })).json());
  const submit = async (name: string) => {
    const body = {
      ...{ name, model: "pocket", dataset: dataset.id, concepts: [{ token: "zxq" }], seed: 1 },
      ...{ settings: { method: "lora", rank: 2 }, resolution: 64, steps, batch_size: 1, checkpoint_every: 1 },
    };
    const answer = await api.call("/v1/trainings", { method: "POST", body: JSON.stringify(body) });
    expect(answer.status).toBe(202);
    return trainingViewSchema.parse(await answer.json()).id;
  };
  const weights = async ({ id, files }: TrainingView) => {
    const { path } = files.find(file => file.path.endsWith(".safetensors"))!;
    return Buffer.from(await (await api.call(`/v1/trainings/${id}/files/${path}`)).arrayBuffer());
  };

  const alone = await until(await submit("alone"), isOver);
  expect(alone.report).toMatchObject({ steps, ended_by: "steps" });
  const id = await submit("killed");
  await until(id, ({ job }) => (job.progress?.step ?? 0) >= 5);
  first.signal("SIGKILL");
  await runner("second");
  const resumed = await until(id, isOver);
  expect(resumed).toMatchObject({ status: "succeeded", report: { steps, ended_by: "steps" } });
  expect(log("second")).toMatch(/the training goes on from a checkpoint/);
  expect(resumed.report!.losses).toEqual(alone.report!.losses);
  expect(await weights(resumed)).toEqual(await weights(alone));
});
