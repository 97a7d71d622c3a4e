import fc from "fast-check";
import { expect, test } from "vitest";
import { z } from "zod";
import { adapterKinds, imageEncoderLayout } from "../../shared/adapter.ts";
import { adapterFits } from "../../shared/adapter-fit.ts";
import { adapterSettings } from "../../shared/generation.ts";
import { modelFamilies } from "../../shared/model.ts";
import { controlPreprocessors } from "../../shared/picture.ts";
import { lossSchema, methodSettingsSchema, optimizerSchema, scoringSchema, trainingMethods } from "../../shared/training.ts";
import { trainingCreateSchema } from "../../shared/training-api.ts";
import { trainingDefaults } from "../../shared/training-defaults.ts";

/** A module of the page. It has no build step, so it repeats some tables of shared/. */
const pageModule = (name: string): Promise<unknown> => import(new URL(`../../edge/ui/${name}`, import.meta.url).href);

test("the page's table of adapter kinds is the API's", async () => {
  const kind = z.object({ title: z.string(), settings: z.array(z.string()) });
  const page = z
    .object({
      adapterKinds: z.record(z.string(), kind),
      preprocessors: z.record(z.string(), z.string()),
      imageEncoderLayout: z.string(),
    })
    .parse(await pageModule("adapter-kinds.js"));
  expect(Object.fromEntries(Object.entries(page.adapterKinds).map(([name, { settings }]) => [name, settings]))).toEqual(adapterSettings);
  expect(Object.keys(page.preprocessors)).toEqual([...controlPreprocessors]);
  expect(page.imageEncoderLayout).toBe(imageEncoderLayout);
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

test("the page shows the API's defaults of trainings", async () => {
  const page = z
    .object({ trainingDefaults: z.custom<typeof trainingDefaults>(value => typeof value === "function") })
    .parse(await pageModule("training-defaults.js"));
  const sampling = { steps: 20, guidance_scale: 7, guidance_rescale: 0, sampler: "ddim" as const, sampler_options: {}, clip_skip: 0 };
  for (const method of trainingMethods)
    for (const family of modelFamilies)
      for (const parameters of [20e6, 900e6]) {
        const defaults = { ...sampling, width: 512, height: 384 };
        const model = { cross_attention_dim: 768, text_widths: [768] as [number], parameters, defaults, size_multiple: 64 };
        expect(page.trainingDefaults(method, family, model)).toEqual(trainingDefaults(method, family, model));
      }
});

test("the page has a field for every setting of every method", async () => {
  const row = z.object({ name: z.string() });
  const tables = z
    .object({ methods: z.record(z.string(), z.object({ rows: z.array(row) })), advancedRows: z.array(row) })
    .parse(await pageModule("training-methods.js"));
  expect(Object.keys(tables.methods)).toEqual([...trainingMethods]);
  // What kind an evaluated adapter is of is read from it.
  const unasked = ["method", "kind"];
  for (const option of methodSettingsSchema.options) {
    const settings = Object.keys(option.shape).filter(name => !unasked.includes(name));
    const rows = tables.methods[option.shape.method.value]!.rows.map(({ name }) => name);
    expect(rows.sort()).toEqual(settings.map(name => `settings.${name}`).sort());
  }
  const known = [...Object.keys(trainingCreateSchema.shape), ...groups("optimizer", optimizerSchema), ...groups("loss", lossSchema)];
  for (const { name } of tables.advancedRows) expect([...known, ...groups("scoring", scoringSchema)]).toContain(name);
});

function groups(name: string, schema: z.ZodObject): string[] {
  return Object.keys(schema.shape).map(key => `${name}.${key}`);
}
