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

/** Four pictures that the model drew itself, as a user would send them back. */
async function newDataset() {
  const form = new FormData();
  form.set("name", "cubes");
  const { pictures } = await api.generate({ prompt: "a red cube", steps: 4, per_image: [1, 2, 3, 4].map(seed => ({ seed })) });
  for (const [i, picture] of pictures.entries()) form.append("file", new File([new Uint8Array(await api.file(picture))], `${i}.png`));
  form.set("captions", JSON.stringify(Object.fromEntries(pictures.map((_, i) => [`${i}.png`, "a zxq cube"]))));
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
  const [adapter = ""] = training.adapters;
  expect(adapterViewSchema.parse(await (await api.call(`/v1/adapters/${adapter}`)).json())).toMatchObject({ kind: "lora" });
  const plain = await api.generate(quick);
  const adapted = await api.generate({ ...quick, adapters: [{ adapter }] });
  expect(adapted.pictures[0]!.sha256).not.toBe(plain.pictures[0]!.sha256);
});
