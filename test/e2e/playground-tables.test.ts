import fc from "fast-check";
import { expect, test } from "vitest";
import { z } from "zod";
import { adapterKinds } from "../../shared/adapter.ts";
import { adapterFits } from "../../shared/adapter-fit.ts";
import { adapterSettings } from "../../shared/generation.ts";
import { modelFamilies } from "../../shared/model.ts";
import { controlPreprocessors } from "../../shared/picture.ts";

/** A module of the page. It has no build step, so it repeats some tables of shared/. */
const pageModule = (name: string): Promise<unknown> => import(new URL(`../../edge/ui/${name}`, import.meta.url).href);

test("the page's table of adapter kinds is the API's", async () => {
  const kind = z.object({ title: z.string(), settings: z.array(z.string()) });
  const page = z
    .object({ adapterKinds: z.record(z.string(), kind), preprocessors: z.record(z.string(), z.string()) })
    .parse(await pageModule("adapter-kinds.js"));
  expect(Object.fromEntries(Object.entries(page.adapterKinds).map(([name, { settings }]) => [name, settings]))).toEqual(adapterSettings);
  expect(Object.keys(page.preprocessors)).toEqual([...controlPreprocessors]);
});

test("the page judges whether an adapter fits as the API does", async () => {
  const page = z
    .object({ adapterFits: z.custom<typeof adapterFits>(value => typeof value === "function") })
    .parse(await pageModule("adapter-fit.js"));
  const width = fc.constantFrom(192, 768, 1024, 1280, 2048);
  const adapter = fc.record({
    kind: fc.constantFrom(...adapterKinds),
    families: fc.subarray([...modelFamilies]),
    cross_attention_dim: fc.option(width),
    text_widths: fc.array(fc.option(width), { maxLength: 2 }),
  });
  const base = fc.record({
    family: fc.constantFrom(...modelFamilies),
    cross_attention_dim: width,
    text_widths: fc
      .tuple(width)
      .chain(([first]) => fc.array(width, { maxLength: 1 }).map((rest): [number, ...number[]] => [first, ...rest])),
  });
  fc.assert(
    fc.property(adapter, base, (a, b) => page.adapterFits(a, b) === adapterFits(a, b)),
    { numRuns: 2000 },
  );
});
