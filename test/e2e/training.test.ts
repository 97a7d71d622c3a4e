import sharp from "sharp";
import { afterAll, beforeAll, expect, test } from "vitest";
import { adapterViewSchema } from "../../shared/adapter-resource.ts";
import { datasetViewSchema, type TrainingView, trainingViewSchema } from "../../shared/training-api.ts";
import { client } from "../support/client.ts";
import { startProduct } from "../support/product.ts";

let product: Awaited<ReturnType<typeof startProduct>>;
let api: ReturnType<typeof client>;
beforeAll(async () => {
  product = await startProduct({ runnerEnv: { ATELIER_CHECKPOINT_MS: "0" } });
  api = client(product.url, product.key);
});
afterAll(async () => {
  await product?.stop();
});

const quick = { prompt: "a zxq cube", steps: 4, seed: 1, width: 128, height: 128 };

/** Four pictures that the model drew itself, as a user would send them back; the last one is held out. */
async function newDataset() {
  const form = new FormData();
  form.set("name", "cubes");
  const { pictures } = await api.generate({ prompt: "a red cube", steps: 4, per_image: [1, 2, 3, 4].map(seed => ({ seed })) });
  for (const [i, picture] of pictures.entries()) form.append("file", new File([new Uint8Array(await api.file(picture))], `${i}.png`));
  const lines = pictures.map((_, i) => ({ file_name: `${i}.png`, caption: "a zxq cube", split: i === 3 ? "test" : "train" }));
  form.set("metadata", lines.map(line => JSON.stringify(line)).join("\n"));
  const headers = { Authorization: `Bearer ${product.key}` };
  return datasetViewSchema.parse(await (await fetch(`${product.url}/v1/datasets`, { method: "POST", headers, body: form })).json());
}

async function view(id: string): Promise<TrainingView> {
  return trainingViewSchema.parse(await (await api.call(`/v1/trainings/${id}`)).json());
}

async function until(id: string, holds: (view: TrainingView) => boolean): Promise<TrainingView> {
  for (;;) {
    const seen = await view(id);
    if (holds(seen)) return seen;
    await new Promise(resolve => setTimeout(resolve, 200));
  }
}

test("a LoRA is trained on a user's pictures, and changes what the model draws", async () => {
  const dataset = await newDataset();
  const body = {
    ...{ name: "cube", model: "pocket", dataset: dataset.id, concepts: [{ token: "zxq" }], seed: 1 },
    ...{ settings: { method: "lora", rank: 2 }, resolution: 64, steps: 30, batch_size: 1, checkpoint_every: 10 },
    optimizer: { learning_rate: 0.01 },
    ...{ sample_every: 15, sample_prompts: ["a zxq cube"], sampling: { steps: 4 }, scoring: { prior_pictures: 2 } },
  };
  const answer = await api.call("/v1/trainings", { method: "POST", body: JSON.stringify(body) });
  expect(answer.status).toBe(202);
  const { id } = trainingViewSchema.parse(await answer.json());
  // The only runner goes on drawing between the training's steps.
  await until(id, ({ job }) => job.progress !== null);
  const between = await api.generate({ ...quick, seed: 2 });
  expect(between.status).toBe("succeeded");
  expect((await view(id)).job.finished_at).toBeNull();
  const training = await until(id, ({ job }) => job.finished_at !== null);
  expect(training).toMatchObject({
    status: "succeeded",
    report: { steps: 30, ended_by: "steps" },
    job: { progress: { step: 30, steps: 30 } },
  });
  const { report, request, files } = training;
  expect(report!.losses.map(([step]) => step)).toEqual(Array.from({ length: 30 }, (_, i) => i + 1));
  expect(report!.validation.length).toBeGreaterThan(0);
  expect(report!.pictures).toEqual({ train: 3, validation: 1, test: 1, prior: 2, validation_is_test: true, prior_from: "model" });
  for (const score of Object.values(report!.scores!)) expect(score!.low).toBeLessThanOrEqual(score!.high);
  expect(report!.dataset_hash).toMatch(/^[0-9a-f]{64}$/);
  // What the model is drawn with where nothing is said, but for what was said.
  expect(request.sampling).toMatchObject({ steps: 4, guidance_scale: 3, guidance_rescale: 0.7 });
  const paths = files.map(({ path }) => path);
  expect(paths).toEqual(expect.arrayContaining(["samples.png", "report.json", "kohya/lora.safetensors"]));
  const file = async (path: string) => Buffer.from(await (await api.call(`/v1/trainings/${id}/files/${path}`)).arrayBuffer());
  expect(await sharp(await file("samples.png")).metadata()).toMatchObject({ width: 64, height: 128 });
  expect(JSON.parse(String(await file("report.json")))).toMatchObject({
    request: { steps: 30, seed: 1 },
    dataset_hash: report!.dataset_hash,
  });
  const events = await (await api.call(`/v1/jobs/${training.job.id}/events`)).text();
  for (const field of ["seconds_left", "memory_bytes", "smoothed_loss", "learning_rate", "data:image/webp"])
    expect(events).toContain(field);
  const [adapter = ""] = training.adapters;
  expect(adapterViewSchema.parse(await (await api.call(`/v1/adapters/${adapter}`)).json())).toMatchObject({ kind: "lora" });
  const plain = await api.generate(quick);
  const adapted = await api.generate({ ...quick, adapters: [{ adapter }] });
  expect(adapted.pictures[0]!.sha256).not.toBe(plain.pictures[0]!.sha256);
});
