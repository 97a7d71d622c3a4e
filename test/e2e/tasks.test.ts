import { readFileSync } from "node:fs";
import sharp from "sharp";
import { afterAll, beforeAll, expect, test } from "vitest";
import { uploadViewSchema } from "../../shared/upload.ts";
import { client } from "../support/client.ts";
import { startProduct } from "../support/product.ts";

let product: Awaited<ReturnType<typeof startProduct>>;
let api: ReturnType<typeof client>;
beforeAll(async () => {
  product = await startProduct();
  api = client(product.url, product.key);
});
afterAll(() => product?.stop());

const quick = { prompt: "a large red sphere, on a green floor at sunset", steps: 8, seed: 7 };

async function upload(file: Uint8Array<ArrayBuffer>): Promise<string> {
  const answer = await api.call("/v1/uploads", { method: "POST", headers: { "Content-Type": "image/png" }, body: file });
  return uploadViewSchema.parse(await answer.json()).id;
}

async function drawn(body: object) {
  const { pictures } = await api.generate({ ...quick, ...body });
  const picture = pictures[0]!;
  const file = await api.file(picture);
  return { picture, file, data: await sharp(file).removeAlpha().raw().toBuffer() };
}

const mean = (a: Buffer, b: Buffer) => a.reduce((sum, value, i) => sum + Math.abs(value - b[i]!), 0) / a.length;

test("a picture to start from is the same as data, upload or earlier picture; the more strength, the further away", async () => {
  const { picture, file, data } = await drawn({});
  const change = { prompt: "a large blue cube, on a white floor", strength: 0.5 };
  const sources = [picture.id, await upload(new Uint8Array(file)), `data:image/png;base64,${file.toString("base64")}`];
  const [first, ...others] = sources;
  const { sha256 } = (await drawn({ ...change, image: first })).picture;
  for (const image of others) expect((await drawn({ ...change, image })).picture).toMatchObject({ sha256, cached: true });
  const distances = [];
  for (const strength of [0.25, 0.5, 1]) distances.push(mean((await drawn({ ...change, strength, image: picture.id })).data, data));
  expect(distances).toEqual(distances.toSorted((a, b) => a - b));
});

test("inpainting leaves every pixel outside the mask, outpainting every one inside the picture", async () => {
  const { picture, data } = await drawn({});
  const raw = Buffer.alloc(128 * 128, 0);
  for (let y = 48; y < 80; y++) raw.fill(255, y * 128 + 48, y * 128 + 80);
  const png = await sharp(raw, { raw: { width: 128, height: 128, channels: 1 } })
    .png()
    .toBuffer();
  const mask = await upload(new Uint8Array(png));
  for (const more of [{}, { padding_mask_crop: 16 }, { mask_fill: "noise" }, { mask_fill: "blur" }]) {
    const { data: result } = await drawn({ prompt: "a small blue cube", image: picture.id, mask, ...more });
    const changed = Array.from(raw, (_, i) => [0, 1, 2].some(c => result[3 * i + c] !== data[3 * i + c]));
    expect(changed.some((is, i) => is && raw[i] === 0)).toBe(false);
    expect(changed.filter(Boolean).length).toBeGreaterThan(300);
  }
  const wide = await drawn({ image: picture.id, outpaint: { left: 64 } });
  expect(wide.picture).toMatchObject({ width: 192, height: 128 });
  const inner = await sharp(wide.data, { raw: { width: 192, height: 128, channels: 3 } })
    .extract({ left: 64 + 64, top: 0, width: 64, height: 128 })
    .raw()
    .toBuffer();
  const own = await sharp(data, { raw: { width: 128, height: 128, channels: 3 } })
    .extract({ left: 64, top: 0, width: 64, height: 128 })
    .raw()
    .toBuffer();
  expect(mean(inner, own)).toBe(0);
});

test("a second pass is larger; prompts of 300 words, A1111's syntax, other noise and guidance are drawn and written down", async () => {
  expect((await drawn({ upscale: { scale: 1.5, mode: "pixel", strength: 0.4 } })).picture).toMatchObject({ width: 192, height: 192 });
  const words = Array.from({ length: 300 }, (_, i) => ["red", "cube", "on", "green"][i % 4]).join(" ");
  const bodies = [
    { prompt: words },
    { prompt_syntax: "a1111", prompt: "a (red:1.3) [sphere|cube] BREAK on a [green:blue:0.5] floor" },
    { noise_source: "mt19937", clip_skip: 1, guidance_interval: [0.2, 0.8], variation: { seed: 3, strength: 0.2 }, tiled_vae: true },
  ];
  const files = [];
  for (const body of bodies) files.push((await drawn(body)).file);
  expect(new Set(files.map(file => file.toString("base64"))).size).toBe(3);
  expect(files[2]!.toString("latin1")).toMatch(/Clip skip: 2, .*RNG: CPU/);
});

test.each([
  [{ mask: "pic_01M85C3NRBH61C4Q2M6S16YNDK" }, "mask"],
  [{ strength: 0.5 }, "strength"],
  [{ image: "https://example.com/a.png" }, "image"],
  [{ image: "data:image/png;base64,AAAA" }, "image"],
  [{ clip_skip: 9 }, "clip_skip"],
  [{ image_guidance_scale: 2 }, "image_guidance_scale"],
  [{ micro_conditioning: {} }, "micro_conditioning"],
])("%j is refused at %s with what was expected", async (body, field) => {
  const answer = await api.post({ ...quick, ...body });
  expect(answer.status).toBe(400);
  expect(await answer.json()).toMatchObject({ errors: [{ field, expected: expect.any(String) }] });
});

test("a picture that cannot be read fails its job with a reason; the runner lives on and logs no prompt", async () => {
  const header = Buffer.from("89504e470d0a1a0a0000000d49484452000000800000008008020000000000000000", "hex");
  const image = `data:image/png;base64,${header.toString("base64")}`;
  const broken = await api.generate({ ...quick, prompt: "a canaryprompt cube", image, strength: 0.5 });
  expect(broken).toMatchObject({ status: "failed", error: { code: "unsupported" } });
  expect((await api.generate({ ...quick, seed: 8 })).status).toBe("succeeded");
  expect(readFileSync(product.state.path("logs/runner.log"), "utf8")).not.toContain("canaryprompt");
});
