import { fileURLToPath } from "node:url";
import type { BrowserContext, Page } from "playwright-core";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { datasetViewSchema, trainingViewSchema } from "../../shared/training-api.ts";
import { faintTexts, namelessControls } from "../support/accessibility.ts";
import { findChromium, openBrowser } from "../support/browser.ts";
import { client } from "../support/client.ts";
import { startProduct } from "../support/product.ts";

const executable = findChromium();
if (!executable) console.log("skipped: no Chromium found (set CHROMIUM_PATH to one)");

/** On a machine that does much else. */
const patiently = { timeout: 30_000 };

/** A picture of a cube's front on a floor: its place and shade differ with i. */
function scene(i: number): Promise<Buffer> {
  const square = { width: 20 + 4 * i, height: 20 + 4 * i, channels: 3 as const, background: { r: 200, g: 40 + 10 * i, b: 60 } };
  return sharp({ create: { width: 64, height: 64, channels: 3, background: { r: 80, g: 110 + 8 * i, b: 190 } } })
    .composite([{ input: { create: square }, left: 6 * i, top: 20 }])
    .png()
    .toBuffer();
}

/** Notes what the page says of a training, before anything of the page runs. */
const recorder = `
  window.said = [];
  new MutationObserver(() => {
    const line = document.querySelector("#training-state")?.textContent;
    if (line && said.at(-1) !== line) said.push(line);
  }).observe(document, { subtree: true, childList: true, characterData: true });`;

describe.skipIf(!executable)("in a real browser", () => {
  let product: Awaited<ReturnType<typeof startProduct>>;
  let browser: { context: BrowserContext; close(): Promise<void> };
  let page: Page;
  /** Whatever the page complained about. Chromium's own line on every refused request is no complaint of the page. */
  const complaints: string[] = [];

  beforeAll(async () => {
    product = await startProduct();
    browser = await openBrowser(executable ?? "");
    page = browser.context.pages()[0] ?? (await browser.context.newPage());
    page.setDefaultTimeout(60_000);
    page.on("console", message => {
      const refused = message.text().startsWith("Failed to load resource: the server responded with a status of 4");
      if (["error", "warning"].includes(message.type()) && !refused) complaints.push(message.text());
    });
    page.on("pageerror", error => complaints.push(error.message));
    await page.addInitScript(recorder);
    await page.goto(product.url);
    await page.getByRole("link", { name: "Train" }).click();
    await page.waitForURL("**/train");
    await page.getByLabel("API key").fill(product.key);
    await page.getByRole("button", { name: "Connect" }).click();
    await page.locator("#key-known").waitFor();
  });
  afterAll(async () => {
    await browser?.close();
    await product?.stop();
  });

  const api = () => client(product.url, product.key);
  const fill = async (fields: Record<string, string>) => {
    for (const [label, value] of Object.entries(fields)) await page.getByLabel(label, { exact: true }).fill(value);
  };
  const state = (text: string | RegExp) => page.locator("#training-state").filter({ hasText: text });
  const shownTraining = async () => {
    const id = /#(trn_\w+)$/.exec(page.url())?.[1];
    return trainingViewSchema.parse(await (await api().call(`/v1/trainings/${id}`)).json());
  };
  const shownDataset = async () => {
    const id = await page.getByLabel("Dataset", { exact: true }).inputValue();
    return datasetViewSchema.parse(await (await api().call(`/v1/datasets/${id}`)).json());
  };

  test("pictures become a dataset, whose captions and uses are edited in place", async () => {
    const pictures = await Promise.all([0, 1, 2, 3].map(async i => ({ name: `${i}.png`, mimeType: "image/png", buffer: await scene(i) })));
    const caption = { name: "0.txt", mimeType: "text/plain", buffer: Buffer.from("a zxq cube") };
    await page.locator("#dataset-files").setInputFiles([...pictures, caption]);
    await page.getByText("4 to learn from · 3 without caption").waitFor();
    await page.getByLabel("Caption for all that have none").fill("a zxq cube on a floor");
    await page.getByRole("button", { name: "Apply" }).click();
    await page.getByText("4 to learn from", { exact: true }).waitFor();
    await page.getByLabel("Use of picture 4").selectOption("test");
    await page.getByText("3 to learn from · 1 to score").waitFor();
    const loaded = `[...document.querySelectorAll(".card img")].map(({ naturalWidth }) => naturalWidth)`;
    await expect.poll(() => page.evaluate(loaded), patiently).toEqual([64, 64, 64, 64]);
    await fill({ Word: "zxq, wvu" });
    await page.getByLabel("Concept of picture 2").selectOption("wvu");
    await expect.poll(async () => (await shownDataset()).items.map(({ concept }) => concept), patiently).toEqual([0, 1, 0, 0]);
    await page.getByLabel("Concept of picture 2").selectOption("zxq");
    await expect.poll(async () => (await shownDataset()).items.map(({ concept }) => concept), patiently).toEqual([0, 0, 0, 0]);
    const { items } = await shownDataset();
    expect(items.map(({ split }) => split)).toEqual(["train", "train", "train", "test"]);
    const [first, ...others] = items.map(({ caption }) => caption).sort();
    expect([first, ...new Set(others)]).toEqual(["a zxq cube", "a zxq cube on a floor"]);
  });

  test("what the API refuses is said beside the field", async () => {
    await fill({ "Name of the result": "cube", Word: "zxq", Steps: "12", Batch: "1", Resolution: "60", "Learning rate": "0.01" });
    await page.getByRole("button", { name: "Train", exact: true }).click();
    await page.locator("[data-field=resolution] .error").filter({ hasText: "60" }).waitFor();
    expect(await page.getByLabel("Resolution").getAttribute("aria-invalid")).toBe("true");
    expect(await page.getByLabel("Rank", { exact: true }).getAttribute("placeholder")).toBe("8");
    await fill({ Resolution: "64", Rank: "2" });
  });

  test("an estimate tells steps, time and memory, and leaves no training behind", async () => {
    await page.getByRole("button", { name: "Estimate" }).click();
    await page.getByText(/^12 steps in about .* s with at most .* of memory\.$/).waitFor();
    expect(await (await api().call("/v1/trainings")).json()).toMatchObject({ data: [] });
  });

  test("a training is followed live, through a reload, to its report", async () => {
    await page.getByText("Samples and budget").click();
    await fill({ "Sample prompts, one a line": "a zxq cube", "Drawn every": "6", "Sampling steps": "2" });
    await page.getByText("Advanced", { exact: true }).click();
    await fill({ "Scored pictures": "1", "Prior score's pictures": "1", "Validate every": "6", Seed: "1" });
    await page.getByRole("button", { name: "Train", exact: true }).click();
    await page
      .locator("#training-stats")
      .filter({ hasText: /Step\d+ of 12/ })
      .waitFor();
    const curve = page.getByRole("img", { name: /^Loss\. each step from/ });
    await curve.waitFor();
    await page.reload();
    await fill({ Rank: "3" });
    await state(/^Done in/).waitFor();
    const { report, request, adapters } = await shownTraining();
    expect(request).toMatchObject({
      steps: 12,
      batch_size: 1,
      resolution: 64,
      seed: 1,
      settings: { rank: 2 },
      concepts: [{ token: "zxq" }],
    });
    expect(await curve.locator("polyline.raw").getAttribute("points")).toMatch(/^(\S+,\S+ ){11}\S+,\S+$/);
    await expect.poll(() => page.locator(".strip img").count(), patiently).toBe(2);
    const gain = `${(100 * report!.scores!.gain.value).toFixed(1)} %`;
    await page.getByRole("row", { name: /^Gain/ }).filter({ hasText: gain }).waitFor();
    const downloads = await page.locator(".downloads a").allTextContents();
    for (const path of ["kohya/lora.safetensors", "samples.png", "report.json"]) expect(downloads).toContain(path);
    expect(adapters.length).toBe(1);
    // What was entered meanwhile stays when models and adapters are read anew.
    await page.locator("#trainings").getByText("succeeded").waitFor();
    expect(await page.getByLabel("Rank", { exact: true }).inputValue()).toBe("3");
    await expect.poll(() => page.locator(".pairs canvas").count(), patiently).toBe(2);
  });

  test("base and result are drawn side by side from the same noise, and differ", async () => {
    await page.getByLabel("Prompt", { exact: true }).fill("a zxq cube");
    await page.getByRole("form", { name: "Before and after" }).getByLabel("Seed").fill("7");
    await page.getByRole("button", { name: "Draw both" }).click();
    const drawn = page.locator(".pairs li").filter({ hasText: "a zxq cube, seed 7" }).locator("img");
    await drawn.nth(1).waitFor();
    const sources = await drawn.evaluateAll(images => images.map(image => image.getAttribute("src") ?? ""));
    const [before, after] = await Promise.all(sources.map(async url => api().file({ url })));
    expect(before!.equals(after!)).toBe(false);
  });

  test("earlier trainings are listed, and their settings come back into the form", async () => {
    await fill({ Steps: "", "Name of the result": "" });
    await page.getByRole("button", { name: "Settings of cube into the form" }).click();
    const values = await Promise.all(
      ["Steps", "Name of the result", "Word", "Rank"].map(label => page.getByLabel(label, { exact: true }).inputValue()),
    );
    expect(values).toEqual(["12", "cube", "zxq", "2"]);
  });

  test("a running training is canceled", async () => {
    await fill({ Steps: "5000", "Name of the result": "endless" });
    await page.getByRole("button", { name: "Train", exact: true }).click();
    await page
      .locator("#training-stats")
      .filter({ hasText: /Step\d+ of 5000/ })
      .waitFor();
    await page.getByRole("button", { name: "Cancel" }).click();
    await state(/^Canceled/).waitFor();
    expect((await shownTraining()).status).toBe("canceled");
  });

  test("light, dark and narrow: every control has a name and a contrast, nothing overflows, nobody complained", async () => {
    await page.getByRole("link", { name: "cube", exact: true }).click();
    await state(/^Done in/).waitFor();
    for (const colorScheme of ["light", "dark"] as const) {
      await page.emulateMedia({ colorScheme });
      await expect.poll(() => faintTexts(page), patiently).toEqual([]);
    }
    expect(await namelessControls(page)).toEqual([]);
    await page.setViewportSize({ width: 360, height: 740 });
    expect(await page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")).toBe(true);
    expect(complaints).toEqual([]);
  });

  test("the result is used in the playground", async () => {
    await page.getByRole("link", { name: "Use in the playground" }).click();
    await page.locator(".use").filter({ hasText: "cube" }).waitFor();
    expect(await page.getByLabel("Prompt", { exact: true }).inputValue()).toBe("a zxq cube");
    const answer = page.waitForResponse(response => response.request().method() === "POST" && response.url().endsWith("/v1/generations"));
    await page.getByLabel("Steps", { exact: true }).fill("2");
    await page.getByRole("button", { name: "Generate" }).click();
    const { generation } = z.object({ generation: z.string() }).parse(await (await answer).json());
    await page.locator(".job.ended").filter({ hasText: /Done/ }).waitFor();
    expect((await api().generation(generation)).request.adapters).toMatchObject([{ name: "cube", kind: "lora" }]);
    expect(complaints).toEqual([]);
  });

  test("an image encoder is offered to trainings of IP-Adapters, and to no request", async () => {
    await page.getByRole("button", { name: "Add an adapter" }).click();
    await page.locator("#adapter-folder").setInputFiles(fileURLToPath(new URL("../../models/pocket-clip", import.meta.url)));
    await page
      .locator(".upload")
      .filter({ hasText: /^pocket-clipImage encoder/ })
      .waitFor();
    const buttons = page.locator(".entry").filter({ hasText: "pocket-clip" }).getByRole("button");
    expect(await buttons.allTextContents()).toEqual(["Delete"]);
    await page.goto(`${product.url}/train`);
    await page.locator("#key-known").waitFor();
    await page.getByLabel("Method", { exact: true }).selectOption("ip-adapter");
    const titles = await page.getByLabel("Image encoder", { exact: true }).locator("option").allTextContents();
    expect(titles).toEqual(["choose one", "pocket-clip, version 1"]);
    await fill({ "Name of the result": "eyes" });
    await page.getByRole("button", { name: "Train", exact: true }).click();
    await page.locator("[data-field='settings.image_encoder'] .error").filter({ hasText: "CLIP vision encoder" }).waitFor();
  });
});
