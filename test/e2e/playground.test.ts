import { execFile, spawnSync } from "node:child_process";
import { promisify } from "node:util";
import type { BrowserContext, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { generationViewSchema } from "../../shared/job.ts";
import { samplerOptionsSchema, samplerTraits } from "../../shared/samplers.ts";
import { faintTexts, namelessControls } from "../support/accessibility.ts";
import { findChromium, openBrowser } from "../support/browser.ts";
import { startProduct } from "../support/product.ts";

const executable = findChromium();
if (!executable) console.log("skipped: no Chromium found (set CHROMIUM_PATH to one)");
const hasCurl = spawnSync("curl", ["--version"]).status === 0;

test("the page's table of samplers is the API's", async () => {
  const modulePath = new URL("../../edge/ui/samplers.js", import.meta.url).href;
  const sampler = z.object({ title: z.string(), options: z.array(z.string()), schedules: z.array(z.string()) });
  const page = z
    .object({ samplers: z.record(z.string(), sampler), optionControls: z.record(z.string(), z.unknown()) })
    .parse(await import(modulePath));
  expect(Object.keys(page.samplers)).toEqual(Object.keys(samplerTraits));
  for (const [name, { title, options, schedules }] of Object.entries(samplerTraits)) {
    expect(page.samplers[name]).toEqual({ title, options: [...options], schedules: [...schedules] });
  }
  expect(Object.keys(page.optionControls).sort()).toEqual([...samplerOptionsSchema.keyof().options].sort());
});

/** Notes what the page says of jobs, and whether a preview was shown, before anything of the page runs. */
const recorder = `
  window.said = [];
  window.previews = 0;
  new MutationObserver(() => {
    for (const line of document.querySelectorAll(".job-text")) if (said.at(-1) !== line.textContent) said.push(line.textContent);
    if (document.querySelector(".tile img.preview[src^='data:image/']")) previews += 1;
  }).observe(document, { subtree: true, childList: true, attributes: true, characterData: true });`;

const naturalSize = `(({ naturalWidth, naturalHeight }) => [naturalWidth, naturalHeight])(document.querySelector(".tile img:not(.preview)"))`;

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
    page.setDefaultTimeout(30_000);
    page.on("console", message => {
      const refused = message.text().startsWith("Failed to load resource: the server responded with a status of 4");
      if (["error", "warning"].includes(message.type()) && !refused) complaints.push(message.text());
    });
    page.on("pageerror", error => complaints.push(error.message));
    await page.addInitScript(recorder);
    await page.goto(product.url);
  });
  afterAll(async () => {
    await browser?.close();
    await product?.stop();
  });

  const firstTile = () => page.locator(".tile").first();
  const connect = async () => {
    await page.getByLabel("API key").fill(product.key);
    await page.getByRole("button", { name: "Connect" }).click();
    await page.getByText("No pictures yet").or(firstTile()).first().waitFor();
  };
  const generate = async (fields: Record<string, string>) => {
    for (const [label, value] of Object.entries(fields)) await page.getByLabel(label, { exact: true }).fill(value);
    await page.getByRole("button", { name: "Generate" }).click();
  };
  const jobEnded = async (text: string | RegExp) => page.locator(".job.ended").filter({ hasText: text }).waitFor();
  const colour = (property: string) => page.evaluate(`getComputedStyle(document.body).${property}`);

  test("nothing comes from elsewhere, and the policy allows no inline script", async () => {
    const answer = await fetch(product.url);
    expect(answer.headers.get("content-security-policy")).toMatch(/^default-src 'self'; img-src 'self' data: blob:;/);
    const sources = z
      .array(z.string())
      .parse(await page.evaluate(`performance.getEntriesByType("resource").map(({ name }) => new URL(name).origin)`));
    expect(sources.length).toBeGreaterThan(3);
    expect(new Set(sources)).toEqual(new Set([product.url]));
  });

  test("a missing or a wrong key is said beside the key", async () => {
    await page.getByRole("button", { name: "Connect" }).click();
    expect(await page.locator("#key").getAttribute("aria-invalid")).toBe("true");
    await page.getByLabel("API key").fill("atl_local_wrong");
    await page.getByRole("button", { name: "Connect" }).click();
    await page.locator("[data-field=key] .error").filter({ hasText: "The API key is malformed" }).waitFor();
  });

  test("key and prompt become a picture, with progress and preview on the way", async () => {
    await connect();
    await generate({ Prompt: "a red sphere on a blue floor", Width: "128", Height: "128", Steps: "40", Seed: "7" });
    await jobEnded(/Done in \d/);
    const image = firstTile().locator("img");
    await expect.poll(() => page.evaluate(naturalSize), { timeout: 10_000 }).toEqual([128, 128]);
    expect(await image.getAttribute("alt")).toBe("a red sphere on a blue floor, seed 7");
    expect(await page.evaluate("said")).toContainEqual(expect.stringMatching(/^Step \d+ of 40$/));
    expect(await page.evaluate("previews")).toBeGreaterThan(0);
  });

  test("a repeat comes from the cache with the same hash", async () => {
    const hash = await firstTile().getAttribute("data-sha256");
    expect(hash).toMatch(/^[0-9a-f]{64}$/);
    await firstTile().getByRole("button", { name: "Repeat" }).click();
    await firstTile().getByText("from cache").waitFor();
    expect(await page.locator(".tile").count()).toBe(2);
    expect(await firstTile().getAttribute("data-sha256")).toBe(hash);
  });

  test.skipIf(!hasCurl)("the copied curl command works as pasted, and has no key in it", async () => {
    await firstTile().getByRole("button", { name: "Copy as curl" }).click();
    await page.locator(".toast.shown").waitFor();
    const command = z.string().parse(await page.evaluate("navigator.clipboard.readText()"));
    expect(command).not.toContain(product.key);
    const { stdout } = await promisify(execFile)("sh", ["-c", command], { env: { ...process.env, ATELIER_KEY: product.key } });
    const { pictures, status } = generationViewSchema.parse(JSON.parse(stdout));
    expect(status).toBe("succeeded");
    expect(pictures).toMatchObject([{ seed: 7, cached: true, sha256: await firstTile().getAttribute("data-sha256") }]);
  });

  test("the gallery is the server's: it survives a reload and has what curl made", async () => {
    await page.reload();
    await firstTile().waitFor();
    expect(await page.locator(".tile").count()).toBe(hasCurl ? 3 : 2);
    expect(await page.locator(".tile .badge:visible").count()).toBe(hasCurl ? 2 : 1);
  });

  test("details show the recipe and the hash, and close with Escape", async () => {
    await firstTile()
      .getByRole("button", { name: /^Details/ })
      .click();
    const dialog = page.getByRole("dialog", { name: "a red sphere on a blue floor" });
    const recipe = await dialog.locator("dl").textContent();
    for (const fact of ["128 × 128 px", "40", await firstTile().getAttribute("data-sha256")]) expect(recipe).toContain(fact);
    expect(await namelessControls(page)).toEqual([]);
    await expect.poll(() => faintTexts(page)).toEqual([]);
    await page.keyboard.press("Escape");
    await dialog.waitFor({ state: "hidden" });
  });

  test("reuse fills the form in", async () => {
    await page.getByLabel("Steps", { exact: true }).fill("3");
    await firstTile().getByRole("button", { name: "Reuse settings" }).click();
    expect(await page.getByLabel("Steps", { exact: true }).inputValue()).toBe("40");
    expect(await page.getByLabel("Seed", { exact: true }).inputValue()).toBe("7");
  });

  test("a bad size is said beside the field, which is focused", async () => {
    await generate({ Width: "129" });
    const error = page.locator("[data-field=width] .error");
    await error.filter({ hasText: "129" }).waitFor();
    const width = page.getByLabel("Width", { exact: true });
    expect(await width.getAttribute("aria-invalid")).toBe("true");
    expect(await width.getAttribute("aria-describedby")).toBe(await error.getAttribute("id"));
    expect(await page.evaluate("document.activeElement.id")).toBe("width");
    await expect.poll(() => faintTexts(page)).toEqual([]);
  });

  test("a bad sampler option opens what hides it", async () => {
    await page.getByText("Sampler and output").click();
    await page.getByLabel("Sampler", { exact: true }).selectOption("ddim");
    await page.getByLabel("Eta", { exact: true }).fill("2");
    await page.getByText("Sampler and output").click();
    await generate({ Width: "128" });
    await page.locator("[data-field='sampler_options.eta'] .error").waitFor();
    await page.getByLabel("Eta", { exact: true }).fill("");
  });

  test("a job is canceled, and its pictures are deleted", async () => {
    const before = await page.locator(".tile").count();
    await generate({ Prompt: "a green cube", Steps: "150", Pictures: "4", Seed: "" });
    await page.getByRole("button", { name: "Cancel" }).click();
    await jobEnded("Canceled");
    await page.locator(".tile[data-status=canceled]").first().waitFor();
    expect(await page.locator(".tile").count()).toBe(before + 4);
    await firstTile().getByRole("button", { name: "Delete" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
    await expect.poll(() => page.locator(".tile").count(), { timeout: 10_000 }).toBe(before);
  });

  test("light and dark: by the system, and by choice, which is kept", async () => {
    await page.emulateMedia({ colorScheme: "light" });
    const light = { background: await colour("backgroundColor"), text: await colour("color") };
    await expect.poll(() => faintTexts(page)).toEqual([]);
    await page.emulateMedia({ colorScheme: "dark" });
    const dark = { background: await colour("backgroundColor"), text: await colour("color") };
    await expect.poll(() => faintTexts(page)).toEqual([]);
    expect(dark.background).not.toBe(light.background);
    expect(dark.text).not.toBe(light.text);
    await page.getByRole("button", { name: "Theme: system" }).click();
    expect(await colour("backgroundColor")).toBe(light.background);
    await page.reload();
    expect(await page.locator("html").getAttribute("data-theme")).toBe("light");
    expect(await colour("backgroundColor")).toBe(light.background);
  });

  test("every control has a name, on a narrow screen nothing overflows, and nobody complained", async () => {
    await firstTile().waitFor();
    await page.getByText("Sampler and output").click();
    expect(await namelessControls(page)).toEqual([]);
    await page.setViewportSize({ width: 360, height: 740 });
    expect(await page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")).toBe(true);
    expect(complaints).toEqual([]);
  });
});
