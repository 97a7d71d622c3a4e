/** What the camera sees at each pixel: sphere tracing (Hart 1996). */
import { distanceTo, nearest, type PlacedSolid, type Stage } from "./stage.ts";
import { along, cross, dot, unit, type Vector } from "./vector.ts";

export interface Seen {
  /** Of the ray. */
  direction: Vector;
  /** Index of the solid; -1: floor or sky. */
  solid: number;
  floor: boolean;
  /** Along the ray, world units; at most 14 where no solid is hit. */
  depth: number;
  point: Vector;
  /** Zero for the sky. */
  normal: Vector;
}

const focalLength = 2.75;
const farthest = 14;

/** Row by row. @param size of the square picture, px */
export function trace({ camera, solids }: Stage, size: number): Seen[] {
  const forward = unit(along(camera.target, camera.at, -1));
  const right = unit(cross([0, 1, 0], forward));
  const up = cross(forward, right);
  return Array.from({ length: size * size }, (_, pixel) => {
    const x = (((pixel % size) + 0.5) / size) * 2 - 1;
    const y = 1 - ((Math.floor(pixel / size) + 0.5) / size) * 2;
    const direction = unit(along(along([forward[0] * focalLength, forward[1] * focalLength, forward[2] * focalLength], right, x), up, y));
    return look(camera.at, direction, camera.distance * 0.35, solids);
  });
}

function look(from: Vector, direction: Vector, start: number, solids: readonly PlacedSolid[]): Seen {
  const toFloor = direction[1] < -1e-4 ? -from[1] / direction[1] : 1000;
  let t = start;
  for (let step = 0; step < 40; step++) {
    const { distance, index } = nearest(solids, along(from, direction, t));
    if (distance < 0.004) {
      const point = along(from, direction, t);
      return { direction, solid: index, floor: false, depth: t, point, normal: normalAt(solids[index]!, point) };
    }
    t += distance * 0.95;
    if (t >= toFloor || t >= farthest) break;
  }
  const depth = Math.min(toFloor, farthest);
  const floor = toFloor < 40;
  return { direction, solid: -1, floor, depth, point: along(from, direction, depth), normal: floor ? [0, 1, 0] : [0, 0, 0] };
}

/** The distance's gradient, by central differences. */
function normalAt(solid: PlacedSolid, point: Vector): Vector {
  const slope = (axis: Vector) => distanceTo(solid, along(point, axis, 0.004)) - distanceTo(solid, along(point, axis, -0.004));
  return unit([slope([1, 0, 0]), slope([0, 1, 0]), slope([0, 0, 1])]);
}

/** Share of the light that reaches a seen point: 0 in shadow, soft at its border. */
export function litShare({ solids, towardsLight }: Stage, { point, normal, solid, floor, depth }: Seen): number {
  const receives = (solid >= 0 || (floor && depth < 12)) && dot(normal, towardsLight) > 0;
  if (!receives) return 1;
  const from = along(point, normal, 0.03);
  let [share, t] = [1, 0.02];
  for (let step = 0; step < 14; step++) {
    const { distance } = nearest(solids, along(from, towardsLight, t));
    share = Math.min(share, Math.min(Math.max((8 * distance) / t, 0), 1));
    t += Math.max(distance, 0.03);
    if (distance <= 0.002 || t >= 4) break;
  }
  return share;
}
