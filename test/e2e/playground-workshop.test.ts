import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { BrowserContext, Page } from "playwright-core";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { bytesOf, type TensorToWrite, writeSafetensors } from "../../gpu-runner/weights/safetensors-write.ts";
import { generationViewSchema } from "../../shared/job.ts";
import { faintTexts, namelessControls } from "../support/accessibility.ts";
import { findChromium, openBrowser } from "../support/browser.ts";
import { client } from "../support/client.ts";
import { startProduct } from "../support/product.ts";

const executable = findChromium();
if (!executable) console.log("skipped: no Chromium found (set CHROMIUM_PATH to one)");

/** A tensor of values that are all over -1..1, times `scale`. */
function tensor(name: string, shape: readonly number[], scale = 1): TensorToWrite {
  const count = shape.reduce((a, b) => a * b, 1);
  return { name, dtype: "F32", shape, data: () => [bytesOf(Float32Array.from({ length: count }, (_, i) => scale * Math.sin(1 + 7 * i)))] };
}

/** A LoRA as kohya writes them, for the cross-attention of the embedded model where `width` is 192. */
function kohyaLora(width: number): TensorToWrite[] {
  const targets = [1, 2].flatMap(block => ["to_k", "to_v"].map(name => ({ block, name })));
  return targets.flatMap(({ block, name }) => {
    const key = `lora_unet_down_blocks_${block}_attentions_0_transformer_blocks_0_attn2_${name}`;
    return [
      tensor(`${key}.lora_down.weight`, [4, width]),
      tensor(`${key}.lora_up.weight`, [[64, 128, 192][block]!, 4]),
      { ...tensor(`${key}.alpha`, []), data: () => [bytesOf(Float32Array.of(4))] },
    ];
  });
}

/** What the headers of a ControlNet look like. It is never run here. */
const controlNet = [
  tensor("controlnet_cond_embedding.conv_in.weight", [16, 3, 3, 3]),
  tensor("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight", [128, 192]),
];

describe.skipIf(!executable)("in a real browser", () => {
  let product: Awaited<ReturnType<typeof startProduct>>;
  let browser: { context: BrowserContext; close(): Promise<void> };
  let page: Page;
  const folder = mkdtempSync(join(tmpdir(), "atelier-adapters-"));
  const complaints: string[] = [];

  beforeAll(async () => {
    product = await startProduct();
    browser = await openBrowser(executable ?? "");
    page = browser.context.pages()[0] ?? (await browser.context.newPage());
    page.setDefaultTimeout(10_000);
    page.on("console", message => {
      const refused = message.text().startsWith("Failed to load resource: the server responded with a status of 4");
      if (["error", "warning"].includes(message.type()) && !refused) complaints.push(message.text());
    });
    page.on("pageerror", error => complaints.push(error.message));
    await page.goto(product.url);
    await page.getByLabel("API key").fill(product.key);
    await page.getByRole("button", { name: "Connect" }).click();
    await page.getByText("No pictures yet").waitFor();
  });
  afterAll(async () => {
    await browser?.close();
    await product?.stop();
    rmSync(folder, { recursive: true, force: true });
  });

  const firstTile = () => page.locator(".tile").first();
  const dialog = () => page.getByRole("dialog");

  /** Draws with what the form says. @returns the generation as the API has it */
  const draw = async (fields: Record<string, string> = {}) => {
    for (const [label, value] of Object.entries(fields)) await page.getByLabel(label, { exact: true }).fill(value);
    const answer = page.waitForResponse(response => response.request().method() === "POST" && response.url().endsWith("/v1/generations"));
    await page.getByRole("button", { name: "Generate" }).click();
    const accepted = z.object({ id: z.string(), generation: z.string().optional() }).parse(await (await answer).json());
    await page
      .locator(".job.ended")
      .filter({ hasText: /Done|cache/ })
      .waitFor();
    const found = await client(product.url, product.key).generation(accepted.generation ?? accepted.id);
    return generationViewSchema.parse(found);
  };
  const pixels = async (generation: Awaited<ReturnType<typeof draw>>) =>
    sharp(await client(product.url, product.key).file(generation.pictures[0]!))
      .removeAlpha()
      .raw()
      .toBuffer();
  /** Mean absolute difference of 8-bit values over a part of two 128 px pictures. */
  const difference = (a: Buffer, b: Buffer, part: (x: number, y: number) => boolean = () => true) => {
    const inside = [...a.keys()].filter(i => part(Math.floor(i / 3) % 128, Math.floor(i / 384)));
    return inside.reduce((sum, i) => sum + Math.abs(a[i]! - b[i]!), 0) / inside.length;
  };

  /** Drops a file on an element, as the file manager would. */
  const drop = async (selector: string, file: { name: string; type: string; bytes: Uint8Array }) => {
    const transfer = await page.evaluateHandle(
      `(() => {
        const { name, type, base64 } = ${JSON.stringify({ name: file.name, type: file.type, base64: Buffer.from(file.bytes).toString("base64") })};
        const transfer = new DataTransfer();
        transfer.items.add(new File([Uint8Array.from(atob(base64), c => c.charCodeAt(0))], name, { type }));
        return transfer;
      })()`,
    );
    for (const type of ["dragenter", "dragover", "drop"]) await page.dispatchEvent(selector, type, { dataTransfer: transfer });
  };
  const dropAdapter = async (name: string, tensors: readonly TensorToWrite[]) => {
    const path = join(folder, name);
    writeSafetensors(path, tensors);
    await drop("body", { name, type: "", bytes: readFileSync(path) });
    await page
      .locator(".upload", { hasText: name.replace(/\..*/, "") })
      .locator("xpath=self::*[@data-status]")
      .first()
      .waitFor();
  };
  const copiedRequest = async () => {
    await page.locator("#copy-form").click();
    await page.locator(".toast.shown").waitFor();
    const command = z.string().parse(await page.evaluate("navigator.clipboard.readText()"));
    return z.looseObject({ adapters: z.array(z.looseObject({})).optional() }).parse(JSON.parse(/-d '(.*)'$/s.exec(command)?.[1] ?? ""));
  };

  let plain: Awaited<ReturnType<typeof draw>>;

  test("the models are listed with what is known of them", async () => {
    await page.getByRole("button", { name: "All models" }).click();
    const text = await dialog().textContent();
    for (const fact of ["pocket", "Stable Diffusion 1", "inpaint", "128 × 128 px", "192"]) expect(text).toContain(fact);
    await dialog().getByRole("button", { name: "Use pocket" }).click();
    await dialog().waitFor({ state: "hidden" });
    await page.getByText("Advanced", { exact: true }).click();
    expect(await page.getByLabel("Second prompt", { exact: true }).count()).toBe(0);
    expect(await page.getByLabel("Original size", { exact: true }).count()).toBe(0);
  });

  test("a LoRA that is dropped on the page is listed, and changes the picture", async () => {
    plain = await draw({ Prompt: "a red sphere on a blue floor", Seed: "7", Steps: "8" });
    await dropAdapter("paint.safetensors", kohyaLora(192));
    await dialog().locator(".upload").filter({ hasText: "LoRA, kohya" }).waitFor();
    expect(await namelessControls(page)).toEqual([]);
    await dialog().getByRole("button", { name: "Add paint" }).click();
    await page.getByLabel("Weight", { exact: true }).fill("0.75");
    const adapted = await draw();
    expect(adapted.request.adapters).toMatchObject([{ name: "paint", kind: "lora", weight: 0.75, start: 0, end: 1 }]);
    expect(difference(await pixels(adapted), await pixels(plain))).toBeGreaterThan(1);
    await firstTile()
      .getByRole("button", { name: /^Details/ })
      .click();
    expect(await dialog().locator("dl").textContent()).toContain("paint, lora, version 1: weight 0.75");
    await page.keyboard.press("Escape");
    await page.getByRole("button", { name: "Remove paint" }).click();
  });

  test("an adapter of another base can't be added, and both widths are said", async () => {
    await dropAdapter("large.safetensors", kohyaLora(2048));
    const entry = dialog().locator(".entry").filter({ hasText: "large" });
    const reason = "Doesn't fit pocket: expected an adapter for text states of width 192, got one for 2048 (SDXL).";
    await entry.getByText(reason).waitFor();
    await dialog().locator(".upload").filter({ hasText: reason }).waitFor();
    expect(await entry.getByRole("button", { name: "Add large" }).isDisabled()).toBe(true);
    await expect.poll(() => faintTexts(page)).toEqual([]);
  });

  test("a file that is no adapter is refused with the reason, and an adapter is deleted after a question", async () => {
    await drop("body", { name: "notes.safetensors", type: "", bytes: Buffer.from("not weights at all") });
    await dialog()
      .locator(".upload[data-status=refused]")
      .filter({ hasText: /^notesRefused: ./ })
      .waitFor();
    await dialog().getByRole("button", { name: "Delete large" }).click();
    await page.getByRole("dialog", { name: "Delete the adapter large?" }).getByRole("button", { name: "Delete" }).click();
    await dialog().locator(".entry").filter({ hasText: "large" }).waitFor({ state: "detached" });
    await page.keyboard.press("Escape");
  });

  test("a large file goes to its own URL, and a folder is one adapter", async () => {
    await page.getByRole("button", { name: "Add an adapter" }).click();
    const key = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k";
    const kohya = `lora_unet_${key.replaceAll(".", "_")}`;
    const path = join(folder, "wide.safetensors");
    writeSafetensors(path, [tensor(`${kohya}.lora_down.weight`, [4096, 192]), tensor(`${kohya}.lora_up.weight`, [128, 4096])]);
    const sent = page.waitForRequest(request => request.method() === "PUT");
    await page.locator("#adapter-files").setInputFiles(path);
    expect(new URL((await sent).url()).pathname).toMatch(/^\/v1\/adapters\/adp_\w+\/files\/[0-9a-f]{64}$/);
    await dialog()
      .locator(".upload")
      .filter({ hasText: /^wideLoRA, kohya.*Ready/ })
      .waitFor();
    const peft = join(folder, "peft-style");
    mkdirSync(peft);
    const side = (name: string, shape: number[]) => tensor(`base_model.model.${key}.lora_${name}.weight`, shape);
    writeSafetensors(join(peft, "adapter_model.safetensors"), [side("A", [4, 192]), side("B", [128, 4])]);
    writeFileSync(join(peft, "adapter_config.json"), JSON.stringify({ peft_type: "LORA", r: 4, lora_alpha: 4, target_modules: ["to_k"] }));
    writeFileSync(join(peft, "README.md"), "Stays behind.");
    await page.locator("#adapter-folder").setInputFiles(peft);
    await dialog()
      .locator(".upload")
      .filter({ hasText: /^peft-styleLoRA, peft.*Ready/ })
      .waitFor();
    await page.keyboard.press("Escape");
  });

  test("a control picture goes into the request by its id, with how its map is made", async () => {
    await dropAdapter("edges.safetensors", controlNet);
    await dialog().getByRole("button", { name: "Add edges" }).click();
    const picture = await sharp({ create: { width: 96, height: 64, channels: 3, background: "teal" } })
      .png()
      .toBuffer();
    await drop("[data-field='adapters.0.image'] .picture-field", { name: "room.png", type: "image/png", bytes: picture });
    await page.getByText("Uploaded, 96 × 64 px").waitFor();
    await page.getByLabel("Control map", { exact: true }).selectOption("canny");
    await page.getByLabel("Guess mode", { exact: false }).check();
    const request = await copiedRequest();
    expect(request.adapters).toMatchObject([{ image: expect.stringMatching(/^upl_/), preprocess: "canny", guess_mode: true }]);
    const answer = await client(product.url, product.key).post({ ...request, cache: "only" });
    expect(await answer.json()).toMatchObject({ code: "cache_miss" });
    await page.getByRole("button", { name: "Remove edges" }).click();
  });

  test("a picture of the gallery is what the next one starts from", async () => {
    await page.locator(".tile").last().getByRole("button", { name: "Use as input" }).click();
    await page.getByText("From the gallery, 128 × 128 px").waitFor();
    await page.getByLabel("Strength", { exact: true }).fill("0.25");
    const near = await draw({ Prompt: "a green cube" });
    expect(near.request).toMatchObject({ image: plain.pictures[0]!.id, strength: 0.25 });
    const changed = difference(await pixels(near), await pixels(plain));
    expect(changed).toBeGreaterThan(0.5);
    expect(changed).toBeLessThan(30);
  });

  test("a painted mask says what is repainted; the rest stays", async () => {
    await page.getByRole("button", { name: "Paint", exact: true }).click();
    const { x, y, width, height } = z
      .object({ x: z.number(), y: z.number(), width: z.number(), height: z.number() })
      .parse(await page.locator("#painter-mask").boundingBox());
    expect(await page.getByRole("button", { name: "Undo" }).isDisabled()).toBe(true);
    const stroke = async (from: [number, number], to: [number, number]) => {
      await page.mouse.move(x + from[0] * width, y + from[1] * height);
      await page.mouse.down();
      await page.mouse.move(x + to[0] * width, y + to[1] * height, { steps: 8 });
      await page.mouse.up();
    };
    await page.getByLabel("Size").fill("50");
    await stroke([0.1, 0.1], [0.1, 0.9]);
    // By keyboard: two inversions and their undoing leave the stroke.
    await page.getByRole("button", { name: "Invert" }).press("Enter");
    await page.getByRole("button", { name: "Invert" }).press("Enter");
    await page.keyboard.press("Control+z");
    await page.keyboard.press("Control+z");
    expect(await namelessControls(page)).toEqual([]);
    await page.getByRole("button", { name: "Use this mask" }).click();
    await page.getByLabel("Mask blur").waitFor();
    await page.getByLabel("Strength", { exact: true }).fill("1");
    const inpainted = await draw({ Prompt: "a yellow cone on a sand floor at sunset" });
    expect(inpainted.request).toMatchObject({ image: plain.pictures[0]!.id, mask: expect.stringMatching(/^upl_/), strength: 1 });
    const [before, after] = [await pixels(plain), await pixels(inpainted)];
    expect(difference(before, after, column => column < 24)).toBeGreaterThan(8);
    // The outside goes through the autoencoder once more.
    expect(difference(before, after, column => column >= 72)).toBeLessThan(6);
  });

  test("settings of a picture come back into the form, mask and all", async () => {
    const shown = await copiedRequest();
    await page.getByRole("button", { name: "Picture: remove" }).click();
    await firstTile().getByRole("button", { name: "Reuse settings" }).click();
    await page.getByLabel("Mask blur").waitFor();
    const again = await copiedRequest();
    expect(again).toMatchObject({ image: shown.image, mask: shown.mask, strength: 1, seed: 7 });
    expect(JSON.stringify(again)).not.toContain("data:");
  });

  test("the form shows what the chosen model does, and nothing else", async () => {
    await page.route("**/v1/models", async route => {
      const { data, ...rest } = z.looseObject({ data: z.array(z.looseObject({})) }).parse(await (await route.fetch()).json());
      const xl = {
        ...data[0],
        name: "large",
        family: "sdxl",
        text_widths: [768, 1280],
        tasks: ["text-to-image", "image-to-image", "inpaint"],
      };
      const others = [xl, { ...xl, name: "finish", family: "sdxl-refiner" }, { ...data[0], name: "editor", tasks: ["edit"] }];
      await route.fulfill({ json: { ...rest, data: [...data, ...others] } });
    });
    await page.reload();
    await firstTile().getByRole("button", { name: "Use as input" }).click();
    await page.getByText("From the gallery").waitFor();
    await page.getByText("Advanced", { exact: true }).click();
    const shown = async (label: string) => (await page.getByLabel(label, { exact: true }).filter({ visible: true }).count()) === 1;
    const labels = ["Second prompt", "Original size", "Refiner", "Image guidance", "Strength", "Left"];
    for (const [model, expected] of Object.entries({
      pocket: ["Strength", "Left"],
      large: ["Second prompt", "Original size", "Refiner", "Strength", "Left"],
      editor: ["Image guidance"],
    })) {
      await page.getByLabel("Model", { exact: true }).selectOption(model);
      const found = await Promise.all(labels.map(async label => ((await shown(label)) ? [label] : [])));
      expect(found.flat(), model).toEqual(expected);
    }
    await page.getByLabel("Model", { exact: true }).selectOption("large");
    await page.getByLabel("Original size", { exact: true }).fill("1024, 768");
    await page.getByLabel("Refiner", { exact: true }).selectOption("finish");
    await page.getByLabel("Second pass", { exact: true }).selectOption("pixel");
    await page.getByLabel("Guidance until", { exact: true }).fill("0.5");
    expect(await copiedRequest()).toMatchObject({
      micro_conditioning: { original_size: [1024, 768] },
      refiner: { model: "finish" },
      upscale: { mode: "pixel" },
      guidance_interval: [0, 0.5],
    });
  });

  test("light, dark and narrow: every control has a name and a contrast, nothing overflows, nobody complained", async () => {
    for (const colorScheme of ["light", "dark"] as const) {
      await page.emulateMedia({ colorScheme });
      await expect.poll(() => faintTexts(page)).toEqual([]);
    }
    expect(await namelessControls(page)).toEqual([]);
    await page.setViewportSize({ width: 360, height: 740 });
    expect(await page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")).toBe(true);
    await page.locator("#adapters summary").click();
    await page.getByRole("button", { name: "Add an adapter" }).click();
    expect(await page.evaluate("(d => d.scrollWidth <= d.clientWidth)(document.querySelector('#library'))")).toBe(true);
    expect(complaints).toEqual([]);
  });
});
