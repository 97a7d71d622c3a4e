/** docs/operating.md against the code: a setting that is renamed, added or given another default fails here until the guide says so. */
import { readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { environmentSchema } from "../../gpu-runner/config.ts";
import { createMetrics } from "../../gpu-runner/metrics.ts";
import { createSecrets } from "../../scripts/secrets.ts";

const root = join(import.meta.dirname, "../..");
const guide = readFileSync(join(root, "docs/operating.md"), "utf8");

/** The first cells of the table under a heading or sentence. */
function rowsAfter(text: string): string[][] {
  const lines = guide.slice(guide.indexOf(text)).split("\n");
  const start = lines.findIndex(line => line.startsWith("|"));
  const end = lines.findIndex((line, i) => i > start && !line.startsWith("|"));
  return lines.slice(start + 2, end).map(line =>
    line
      .split("|")
      .slice(1, -1)
      .map(cell => cell.trim().replaceAll("`", "")),
  );
}

/** What an absent variable becomes, in the guide's words. */
function defaultOf(name: keyof typeof environmentSchema.shape): string {
  const parsed = environmentSchema.shape[name].safeParse(undefined);
  if (!parsed.success) return "required";
  return parsed.data === undefined ? "none" : String(parsed.data).replace(homedir(), "~");
}

test("the runner's variables and their defaults", () => {
  const names = environmentSchema.keyof().options;
  expect(rowsAfter("## A runner").map(([name, value]) => [name, value])).toEqual(names.map(name => [name, defaultOf(name)]));
});

test("the Worker's variables", () => {
  const vars = /^\[vars\]\n([\s\S]*?)\n\[/m.exec(readFileSync(join(root, "wrangler.toml"), "utf8"))?.[1] ?? "";
  const names = [...vars.matchAll(/^(\w+) = /gm)].map(([, name]) => name);
  expect(names.length).toBeGreaterThan(0);
  expect(
    rowsAfter("### Settings")
      .map(([name]) => name)
      .sort(),
  ).toEqual(names.sort());
});

test("the Worker's secrets", () => {
  expect(
    rowsAfter("### Secrets")
      .map(([name]) => name!)
      .sort(),
  ).toEqual(Object.keys(createSecrets()).sort());
});

test("the metrics that it names", () => {
  const { registry } = createMetrics();
  const named = [...new Set(guide.match(/atelier_runner_\w+/g))];
  expect(named.length).toBeGreaterThan(3);
  expect(named.filter(name => !registry.getSingleMetric(name))).toEqual([]);
});
