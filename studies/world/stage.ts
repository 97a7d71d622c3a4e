/** Where everything stands: all that is random in a picture once its words are known. */
import type { Draws } from "./draws.ts";
import type { Part, Scene } from "./scene.ts";
import { distances, restingHeight } from "./shapes.ts";
import { along, unit, type Vector } from "./vector.ts";
import { type ColourName, type Material, type Shape, sizes } from "./words.ts";

export interface PlacedSolid {
  shape: Shape;
  colour: ColourName;
  material: Material;
  centre: Vector;
  /** Half height. */
  s: number;
  /** About the vertical axis, radians. */
  turn: number;
}

export interface Stage {
  camera: { at: Vector; target: Vector; distance: number };
  solids: readonly PlacedSolid[];
  /** Unit vector towards the light. */
  towardsLight: Vector;
}

/** Draws come in the order of the Python original, so that a test can play the same ones to both. */
export function stage(scene: Scene, draws: Draws): Stage {
  const yaw = draws.uniform(-0.35, 0.35);
  const pitch = draws.uniform(0.26, 0.42);
  const distance = scene.solids.length === 2 ? draws.uniform(5.6, 6.6) : draws.uniform(4.6, 5.6);
  const target: Vector = [draws.normal(0.08), 0.75 + draws.normal(0.08), draws.normal(0.08)];
  const view: Vector = [Math.sin(yaw) * Math.cos(pitch), Math.sin(pitch), -Math.cos(yaw) * Math.cos(pitch)];
  const placed = placeWords(scene, yaw, draws);
  const solids = scene.parts ? placeParts(scene.parts, draws) : placed;
  const towardsLight = unit([-0.5 + draws.uniform(-0.2, 0.2), 0.8, -0.45]);
  return { camera: { at: along(target, view, distance), target, distance }, solids, towardsLight };
}

function placeWords({ solids, relation }: Scene, yaw: number, draws: Draws): PlacedSolid[] {
  const placed = solids.map(({ shape, colour, material, size }): PlacedSolid => {
    const s = sizes[size] * (solids.length === 1 ? 1 : 0.85);
    // A ring seen from its edge would look like a pill.
    const turn = shape === "ring" ? draws.uniform(-0.4, 0.4) : draws.uniform(-0.5, 0.5);
    return { shape, colour, material, s, turn, centre: [0, restingHeight(shape, s), 0] };
  });
  const [first, second] = placed;
  if (!first || !second) return placed;
  const apart = first.s + second.s + draws.uniform(0.1, 0.35);
  const sideways: Vector = [Math.cos(yaw), 0, Math.sin(yaw)];
  if (relation === "on top of") {
    first.centre = along(first.centre, [0, 1, 0], restingHeight(second.shape, second.s) * 2);
  } else if (relation === "behind") {
    const away: Vector = [-Math.sin(yaw), 0, Math.cos(yaw)];
    const aside = draws.choose([-1, 1]) * 0.55;
    first.centre = along(along(first.centre, away, apart * 0.62), sideways, aside);
    second.centre = along(along(second.centre, away, -apart * 0.5), sideways, -aside);
  } else {
    const nearer = draws.uniform(-0.4, 0.4);
    const side = ((relation === "left of" ? -1 : 1) * apart) / 2;
    first.centre = along(along(first.centre, sideways, side), [0, 0, 1], nearer);
    second.centre = along(along(second.centre, sideways, -side), [0, 0, 1], -nearer);
  }
  return placed;
}

function placeParts(parts: readonly Part[], draws: Draws): PlacedSolid[] {
  const scale = draws.uniform(0.85, 1.1);
  const turn = draws.uniform(-0.4, 0.4);
  const offset: Vector = [draws.normal(0.15), draws.normal(0.15) * 0, draws.normal(0.15)];
  const [cosine, sine] = [Math.cos(turn), Math.sin(turn)];
  return parts.map(({ shape, size, centre: [x, y, z], colour, material }) => ({
    shape,
    colour,
    material,
    s: size * scale,
    turn: shape === "ring" ? 0 : turn,
    centre: along(offset, [cosine * x + sine * z, y, -sine * x + cosine * z], scale),
  }));
}

/** A point in a solid's own frame. */
export function local({ centre, turn }: PlacedSolid, point: Vector): Vector {
  const [x, z] = [point[0] - centre[0], point[2] - centre[2]];
  const [cosine, sine] = [Math.cos(turn), Math.sin(turn)];
  return [cosine * x - sine * z, point[1] - centre[1], sine * x + cosine * z];
}

export function distanceTo(solid: PlacedSolid, point: Vector): number {
  const [x, y, z] = local(solid, point);
  return distances[solid.shape](x, y, z, solid.s);
}

/** Distance of the nearest solid and which it is. */
export function nearest(solids: readonly PlacedSolid[], point: Vector): { distance: number; index: number } {
  let best = { distance: Number.POSITIVE_INFINITY, index: -1 };
  for (const [index, solid] of solids.entries()) {
    const distance = distanceTo(solid, point);
    if (distance < best.distance) best = { distance, index };
  }
  return best;
}
