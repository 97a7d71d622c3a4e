import type { Draws } from "./draws.ts";
import {
  type ColourName,
  colours,
  type Floor,
  floors,
  type Light,
  lights,
  type Material,
  materials,
  type Relation,
  type Shape,
  type Size,
  type Style,
  shapes,
  sizes,
  styles,
} from "./words.ts";

/** One solid, in words. */
export interface SolidWords {
  shape: Shape;
  colour: ColourName;
  material: Material;
  size: Size;
}

/** A part of a held-out object: centre [x, y, z] and half height in world units. */
export interface Part {
  shape: Shape;
  size: number;
  centre: readonly [number, number, number];
  colour: ColourName;
  material: Material;
}

/** What a picture shows, in words; where the camera stands is drawn when it is staged. */
export interface Scene {
  /** One or two. */
  solids: readonly SolidWords[];
  relation: Relation | null;
  floor: Floor;
  light: Light;
  style: Style;
  /** Instead of the solids: a held-out object. */
  parts?: readonly Part[];
}

const keys = <K extends string>(table: Record<K, unknown>) => Object.keys(table) as K[];

function sampleSolid(draws: Draws): SolidWords {
  return {
    shape: draws.choose(shapes),
    colour: draws.choose(keys(colours)),
    material: draws.choose(
      materials.filter(material => material !== "dotted"),
      [0.4, 0.2, 0.15, 0.15, 0.1],
    ),
    size: draws.choose(keys(sizes), [0.25, 0.5, 0.25]),
  };
}

/** A random scene of the captions' world. @param two of two solids; absent: half of the time */
export function sampleScene(draws: Draws, two = draws.uniform(0, 1) < 0.5): Scene {
  const solids = Array.from({ length: two ? 2 : 1 }, () => sampleSolid(draws));
  const [first, second] = solids;
  let relation: Relation | null = null;
  if (first && second) {
    // Two solids that no word tells apart would make the relation meaningless.
    while (second.shape === first.shape && second.colour === first.colour) second.colour = draws.choose(keys(colours));
    relation = draws.choose(["left of", "right of", "behind", "on top of"], [0.35, 0.35, 0.15, 0.15]);
    // Only these have a flat top to stand on.
    if (relation === "on top of" && second.shape !== "cube" && second.shape !== "cylinder") relation = "left of";
  }
  const style = draws.uniform(0, 1) < 0.55 ? "" : draws.choose(styles);
  return { solids, relation, floor: draws.choose(keys(floors)), light: draws.choose(keys(lights), [0.4, 0.2, 0.2, 0.2]), style };
}
