import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { expect, onTestFinished, test } from "vitest";
import { z } from "zod";
import type { TrainingScores } from "../../shared/training.ts";
import { trainingCreateSchema } from "../../shared/training-api.ts";
import { conceptNames, readConcept } from "../../studies/concepts.ts";
import { Kept } from "../../studies/kept.ts";
import { conceptPlans, matrixPlan, pairPlans } from "../../studies/plans.ts";
import { ownBest, shortfalls } from "../../studies/verdict.ts";

test("ten concepts, each with a token of its own and eight pictures to learn from and to test on", async () => {
  const concepts = conceptNames.map(readConcept);
  expect(concepts.filter(({ isObject }) => isObject)).toHaveLength(8);
  expect(concepts.filter(({ isObject }) => !isObject)).toHaveLength(2);
  expect(new Set(concepts.map(({ token }) => token)).size).toBe(10);
  for (const { pictures } of concepts) {
    for (const split of ["train", "test"] as const) expect(pictures.filter(picture => picture.split === split)).toHaveLength(8);
    for (const { png } of pictures) expect(await sharp(png).metadata()).toMatchObject({ format: "png", width: 128, height: 128 });
  }
});

const score = (value: number, low = value - 0.01, high = value + 0.01) => ({ value, low, high });
const learned: TrainingScores = { gain: score(0.1), binding: score(0.02), prior: score(1.01), drift: score(0.1) };

test("what counts as learned", () => {
  expect(shortfalls(learned)).toEqual([]);
  expect(shortfalls({ ...learned, prior: null })).toEqual([]);
  expect(shortfalls({ ...learned, gain: score(0.039) })).toEqual(["gain 3.9 %, expected at least 4.0 %"]);
  expect(shortfalls({ ...learned, gain: score(0.1, -0.01) })).toEqual(["gain's interval begins at -1.0 %, expected above 0"]);
  expect(shortfalls({ ...learned, binding: score(0) })).toEqual(["binding 0.0 %, expected above 0"]);
  expect(shortfalls({ ...learned, prior: score(1.031) })).toEqual(["prior ratio 1.031, expected at most 1.03"]);
});

test("an inversion moves nothing where its token is absent", () => {
  const apart = { ...learned, prior: score(1, 1), drift: { value: 0, low: 0, high: 0 } };
  expect(shortfalls(apart, true)).toEqual([]);
  expect(shortfalls({ ...apart, drift: score(0.01) }, true)).toEqual(["pictures without the token differ, expected the same"]);
});

test("own weights are best where every other concept's gain less", () => {
  expect(
    ownBest([
      [0.3, 0.1],
      [0.2, 0.2],
    ]),
  ).toBe(2);
  expect(
    ownBest([
      [0.3, 0.2],
      [0.2, 0.2],
    ]),
  ).toBe(1);
  expect(
    ownBest([
      [0, 0],
      [0, 0],
    ]),
  ).toBe(0);
});

test("a part of a study is computed once and read from then on", async () => {
  const folder = mkdtempSync(join(tmpdir(), "atelier-study-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  let computed = 0;
  const part = (kept: Kept) => kept.part("lora/one", z.object({ at: z.int() }), async () => ({ at: ++computed }));
  expect(await part(new Kept(folder))).toEqual({ at: 1 });
  expect(await part(new Kept(folder))).toEqual({ at: 1 });
  await expect(new Kept(folder).part("lora/two", z.object({ at: z.int() }), async () => ({ at: 0.5 }))).rejects.toThrow(z.ZodError);
  expect(new Kept(folder).read("lora/two.json")).toBeUndefined();
});

test("every plan is a training that the API takes", () => {
  const objects = [true, false].flatMap(isObject => Object.values(conceptPlans).map(plan => plan({ isObject })));
  for (const plan of [...objects, matrixPlan, ...Object.values(pairPlans)]) {
    const body = { ...plan, name: "study", model: "pocket", dataset: "dst_01ARZ3NDEKTSV4RRFFQ69G5FAV" };
    expect(trainingCreateSchema.safeParse(body).error?.issues ?? []).toEqual([]);
  }
});
