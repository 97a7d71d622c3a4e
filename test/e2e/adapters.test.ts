import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, beforeAll, expect, test } from "vitest";
import { writeSafetensors } from "../../gpu-runner/weights/safetensors-write.ts";
import { adapterViewSchema } from "../../shared/adapter-resource.ts";
import { client } from "../support/client.ts";
import { startProduct } from "../support/product.ts";

let product: Awaited<ReturnType<typeof startProduct>>;
let api: ReturnType<typeof client>;
const folder = mkdtempSync(join(tmpdir(), "atelier-adapters-"));
beforeAll(async () => {
  product = await startProduct();
  api = client(product.url, product.key);
});
afterAll(async () => {
  await product?.stop();
  rmSync(folder, { recursive: true, force: true });
});

const quick = { prompt: "a red cube, on a green floor", steps: 4, seed: 1 };
const attentions = ["down_blocks_1_attentions_0", "mid_block_attentions_0", "up_blocks_0_attentions_0"];

function tensor(name: string, shape: number[], value: (i: number) => number) {
  const data = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => value(i));
  return { name, dtype: "F32" as const, shape, data: () => [new Uint8Array(data.buffer)] };
}

/** A file of these tensors, as a browser's form would send it. */
function fileOf(name: string, tensors: ReturnType<typeof tensor>[]): File {
  const path = join(folder, name);
  writeSafetensors(path, tensors);
  return new File([readFileSync(path)], name);
}

/** A LoRA of rank 2 for the pocket model's cross-attention: text states of this width. */
function lora(name: string, phase: number, textWidth = 192): File {
  const widths: Record<string, number> = { down_blocks_1_attentions_0: 128 };
  return fileOf(
    name,
    attentions.flatMap(place => {
      const key = `lora_unet_${place}_transformer_blocks_0_attn2_to_v`;
      const out = widths[place] ?? 192;
      return [
        tensor(`${key}.lora_down.weight`, [2, textWidth], i => Math.sin(i + phase)),
        tensor(`${key}.lora_up.weight`, [out, 2], i => 0.3 * Math.cos(i * phase)),
        tensor(`${key}.alpha`, [], () => 2),
      ];
    }),
  );
}

async function send(name: string, file: File, fields: Record<string, string> = {}): Promise<Response> {
  const form = new FormData();
  for (const [field, value] of Object.entries({ name, ...fields })) form.set(field, value);
  form.append("file", file);
  return fetch(`${product.url}/v1/adapters`, { method: "POST", headers: { Authorization: `Bearer ${product.key}` }, body: form });
}

async function upload(...args: Parameters<typeof send>) {
  const view = adapterViewSchema.parse(await (await send(...args)).json());
  expect(view.status).toBe("ready");
  return view;
}

async function pixels(body: object, index = 0): Promise<Buffer> {
  const { pictures } = await api.generate({ ...quick, ...body });
  return sharp(await api.file(pictures[index]!))
    .raw()
    .toBuffer();
}

const furthest = (a: Buffer, b: Buffer) => a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i]!)), 0);

test("a LoRA changes the picture by its weight; a repeat is the same bytes from the cache; deleting it takes them out", async () => {
  const file = lora("one.safetensors", 1);
  const { id } = await upload("one", file);
  const use = { ...quick, adapters: [{ adapter: "one", weight: 1 }] };
  const first = await api.generate(use);
  const repeat = await api.generate(use);
  expect(repeat.pictures).toMatchObject([{ cached: true, sha256: first.pictures[0]!.sha256 }]);
  const plain = await pixels({});
  expect(furthest(await pixels({ adapters: use.adapters }), plain)).toBeGreaterThan(8);
  expect(furthest(await pixels({ adapters: [{ adapter: "one", weight: 0 }] }), plain)).toBeLessThanOrEqual(1);
  expect((await api.call(`/v1/adapters/${id}`, { method: "DELETE" })).status).toBe(204);
  await upload("one", file);
  expect((await api.generate(use)).pictures).toMatchObject([{ cached: false, sha256: first.pictures[0]!.sha256 }]);
});

test("kinds work together, and each picture of a batch has its own LoRAs, as alone", async () => {
  await upload("two", lora("two.safetensors", 2));
  await upload("three", lora("three.safetensors", 3));
  await upload("word", fileOf("word.safetensors", [tensor("emb_params", [2, 192], i => 0.1 * Math.sin(7 * i))]), { token: "zork" });
  const word = { prompt: "a zork cube, on a green floor" };
  expect(await pixels({ ...word, adapters: [{ adapter: "word" }, { adapter: "two" }] })).not.toEqual(
    await pixels({ ...word, adapters: [{ adapter: "two" }] }),
  );
  const sets = [[{ adapter: "two" }], [], [{ adapter: "three", weight: 0.5 }], [{ adapter: "two", weight: 0.7 }, { adapter: "three" }]];
  const together = await api.generate({ ...quick, cache: "fresh", per_image: sets.map(adapters => ({ seed: 5, adapters })) });
  for (const [i, adapters] of sets.entries()) {
    const own = await sharp(await api.file(together.pictures[i]!))
      .raw()
      .toBuffer();
    expect(furthest(own, await pixels({ seed: 5, adapters, cache: "fresh" })), `picture ${i}`).toBeLessThanOrEqual(1);
  }
});

test("a file of another width is refused with both, a pickle that names a callable by its name", async () => {
  await upload("wide", lora("wide.safetensors", 1, 768));
  const answer = await api.post({ ...quick, adapters: [{ adapter: "wide" }] });
  expect(answer.status).toBe(400);
  expect(await answer.json()).toMatchObject({
    errors: [{ field: "adapters.0.adapter", expected: expect.stringContaining("192"), got: expect.stringContaining("768") }],
  });
  const evil = readFileSync(join(import.meta.dirname, "../goldens/adapters/adapters/hypernetwork/hyper-pickle-code.pt"));
  const refused = await send("evil", new File([evil], "evil.pt"));
  expect(refused.status).toBe(422);
  expect(await refused.json()).toMatchObject({ code: "adapter_refused", detail: expect.stringMatching(/name that could run code/) });
});
