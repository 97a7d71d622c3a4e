import type { Scene } from "./scene.ts";
import { local, type PlacedSolid, type Stage } from "./stage.ts";
import { litShare, type Seen } from "./trace.ts";
import { along, clamp01, dot, type Vector } from "./vector.ts";
import { type Colour, colours, floors, lights, type Material } from "./words.ts";

/** How strongly a material mirrors the light itself. */
const highlights: Record<Material, number> = { "": 0.06, shiny: 0.8, metal: 1, striped: 0.06, checkered: 0.06, dotted: 0.06 };

const mix = (a: Colour, b: Colour, share: number): Colour => [
  a[0] * (1 - share) + b[0] * share,
  a[1] * (1 - share) + b[1] * share,
  a[2] * (1 - share) + b[2] * share,
];

/** Colour of a seen pixel, gamma applied, 0 .. 1. */
export function shade(seen: Seen, scene: Scene, stage: Stage): Colour {
  const light = lights[scene.light];
  const solid = stage.solids[seen.solid];
  if (!solid && !seen.floor) return encode(mix(light.bottom, light.top, clamp01(seen.direction[1] * 1.8 + 0.15)));
  const albedo = solid ? surface(solid, seen.point) : floors[scene.floor];
  const share = litShare(stage, seen);
  const diffuse = light.ambient + (1 - light.ambient) * 1.05 * clamp01(dot(seen.normal, stage.towardsLight)) * share;
  const mirrored: Vector = along(seen.direction, seen.normal, -2 * dot(seen.direction, seen.normal));
  const highlight = solid ? clamp01(dot(mirrored, stage.towardsLight)) ** 30 * highlights[solid.material] * share : 0;
  let colour: Colour = albedo.map((a, i) => (a * diffuse + highlight) * light.colour[i]!) as unknown as Colour;
  if (solid?.material === "metal") {
    const around = surroundings(mirrored, scene);
    colour = colour.map((c, i) => 0.45 * c + 0.65 * around[i]! * (0.35 + 0.65 * albedo[i]!)) as unknown as Colour;
  }
  const fog = seen.floor ? clamp01((seen.depth - 8) / 6) : 0;
  return encode(mix(colour, light.bottom, fog));
}

const encode = (colour: Colour) => colour.map(c => clamp01(c) ** (1 / 1.25)) as unknown as Colour;

/** What metal mirrors: the sky or the floor. */
function surroundings(direction: Vector, scene: Scene): Colour {
  const light = lights[scene.light];
  if (direction[1] > 0) return mix(light.bottom, light.top, clamp01(direction[1] * 0.9 + 0.4));
  return floors[scene.floor].map((f, i) => f * 0.7 * light.colour[i]!) as unknown as Colour;
}

/** A solid's own colour at a point. */
function surface(solid: PlacedSolid, point: Vector): Colour {
  const own: Colour = colours[solid.colour];
  const [x, y, z] = local(solid, point);
  if (patterns[solid.material](x, y, z, solid.s)) return own;
  // Patterns are light on dark colours, dark on light ones.
  return (own[0] + own[1] + own[2]) / 3 < 0.6 ? [0.95, 0.95, 0.92] : [0.12, 0.12, 0.14];
}

const plain = () => true;
/** Whether a point in the solid's frame has the solid's own colour. */
const patterns: Record<Material, (x: number, y: number, z: number, s: number) => boolean> = {
  "": plain,
  shiny: plain,
  metal: plain,
  striped: (_x, y, _z, s) => Math.sin(((y * 14) / s) * 0.8) > 0,
  checkered: (x, y, z, s) => {
    const k = 3.2 / s;
    return (Math.floor(x * k) + Math.floor(y * k) + Math.floor(z * k)) % 2 === 0;
  },
  dotted: (x, y, z, s) => {
    const cell = (v: number) => (v * 3.6) / s - Math.floor((v * 3.6) / s) - 0.5;
    return Math.sqrt(cell(x) ** 2 + cell(y) ** 2 + cell(z) ** 2) > 0.4;
  },
};
