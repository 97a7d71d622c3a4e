import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import sharp from "sharp";
import { describe, expect, test } from "vitest";
import { chosen, type Draws } from "../../../studies/world/draws.ts";
import { objects } from "../../../studies/world/objects.ts";
import { render } from "../../../studies/world/render.ts";
import type { Scene, SolidWords } from "../../../studies/world/scene.ts";
import { stage } from "../../../studies/world/stage.ts";
import { type Floor, type Light, type Relation, type Style, shapes } from "../../../studies/world/words.ts";
import { objectPicture, worldPicture } from "../../../studies/world/world.ts";

const folder = fileURLToPath(new URL("../../goldens/world/", import.meta.url));

interface Case {
  objs: SolidWords[];
  rel: Relation | null;
  floor: Floor;
  light: Light;
  style: Style;
  parts?: keyof typeof objects;
  fractions: number[];
}
const cases: Record<string, Case> = JSON.parse(readFileSync(`${folder}scenes.json`, "utf8"));

/** Fixed fractions instead of random ones, as make.py plays them. */
function played(fractions: readonly number[]): Draws {
  const left = [...fractions];
  const next = () => {
    const fraction = left.shift();
    if (fraction === undefined) throw new Error("expected no more draws than the original makes");
    return fraction;
  };
  return {
    uniform: (low, high) => low + (high - low) * next(),
    normal: deviation => deviation * (2 * next() - 1),
    choose: of => of[chosen(next(), of.length)]!,
  };
}

async function meanDifference(actual: Uint8Array, file: string, channels: number): Promise<number> {
  const { data } = await sharp(`${folder}${file}`)
    .toColourspace(channels === 3 ? "srgb" : "b-w")
    .raw()
    .toBuffer({ resolveWithObject: true });
  expect(data.length).toBe(actual.length);
  return data.reduce((sum, value, i) => sum + Math.abs(value - actual[i]!), 0) / data.length / 255;
}

describe("the world renders as its Python original", () => {
  test.each(Object.entries(cases))("%s", async (name, { objs, rel, parts, fractions, ...rest }) => {
    const scene: Scene = { ...rest, solids: objs, relation: rel, ...(parts && { parts: objects[parts] }) };
    const picture = render(scene, stage(scene, played(fractions)), 128);
    expect(await meanDifference(picture.rgb, `${name}.rgb.png`, 3)).toBeLessThan(1 / 255);
    expect(await meanDifference(picture.depth, `${name}.depth.png`, 1)).toBeLessThan(1 / 255);
    expect(await meanDifference(picture.edges, `${name}.edges.png`, 1)).toBeLessThan(0.005);
  });
});

test("the same seed gives the same bytes, another one other bytes", () => {
  expect(worldPicture(5, { size: 48 })).toEqual(worldPicture(5, { size: 48 }));
  expect(Buffer.compare(worldPicture(5, { size: 48 }).rgb, worldPicture(6, { size: 48 }).rgb)).not.toBe(0);
});

/** Share of the picture that a solid of middle size covers, whatever the camera. */
test.each(shapes)("a %s fills a sensible part of the picture", shape => {
  const scene: Scene = {
    solids: [{ shape, colour: "red", material: "", size: "" }],
    relation: null,
    floor: "gray",
    light: "",
    style: "",
  };
  for (const draw of [0.1, 0.5, 0.9]) {
    const { solidPixels, edges } = render(scene, stage(scene, played(Array(16).fill(draw))), 64);
    expect(solidPixels / 64 ** 2).toBeGreaterThan(0.03);
    expect(solidPixels / 64 ** 2).toBeLessThan(0.3);
    expect(edges.filter(edge => edge === 255).length).toBeGreaterThan(40);
  }
});

test("captions say what the scene holds", () => {
  for (let seed = 0; seed < 40; seed++) {
    const { caption, scene } = worldPicture(seed, { size: 8 });
    for (const { shape, colour } of scene.solids) expect(caption).toContain(`${colour} ${shape}`);
    if (scene.style) expect(caption.startsWith(scene.style)).toBe(true);
    expect(caption).not.toMatch(/\ba [aeiou]|\ban [^aeiou]|undefined| {2}/);
  }
});

test("a held-out object is captioned by its token alone", () => {
  const { caption, solidPixels } = objectPicture("rocket", "ches", 3);
  expect(caption).toMatch(/^a ches toy, on a \w+ floor/);
  expect(solidPixels).toBeGreaterThan(300);
});
