/** Signed distance functions of the solids (Quilez, "Distance functions"): negative inside, in world units. */
import type { Shape } from "./words.ts";

/** @param s half height of the solid, whose centre is the origin */
type Distance = (x: number, y: number, z: number, s: number) => number;

const clamp = (value: number, low: number, high: number) => Math.min(Math.max(value, low), high);

/** A cone or pyramid: `across` is the distance from the axis in the solid's own metric. */
function tapered(across: number, y: number, s: number, slope: number): number {
  const side = (across - s * 0.95 * clamp((s - y) / (2 * s), 0, 1)) * slope;
  return Math.max(side, -y - s, y - s);
}

export const distances = {
  sphere: (x, y, z, s) => Math.sqrt(x * x + y * y + z * z) - s,
  cube: (x, y, z, s) => {
    const [a, b, c] = [Math.abs(x) - s * 0.82, Math.abs(y) - s * 0.82, Math.abs(z) - s * 0.82];
    const [p, q, r] = [Math.max(a, 0), Math.max(b, 0), Math.max(c, 0)];
    return Math.sqrt(p * p + q * q + r * r) + Math.min(Math.max(a, b, c), 0) - 0.03;
  },
  cylinder: (x, y, z, s) => {
    const [d, e] = [Math.sqrt(x * x + z * z) - s * 0.72, Math.abs(y) - s];
    const [p, q] = [Math.max(d, 0), Math.max(e, 0)];
    return Math.min(Math.max(d, e), 0) + Math.sqrt(p * p + q * q);
  },
  cone: (x, y, z, s) => tapered(Math.sqrt(x * x + z * z), y, s, 0.88),
  ring: (x, y, z, s) => {
    const q = Math.sqrt(x * x + y * y) - s * 0.7;
    return Math.sqrt(q * q + z * z) - s * 0.3;
  },
  pill: (x, y, z, s) => {
    const h = y - clamp(y, -s * 0.5, s * 0.5);
    return Math.sqrt(x * x + h * h + z * z) - s * 0.5;
  },
  pyramid: (x, y, z, s) => tapered(Math.max(Math.abs(x), Math.abs(z)), y, s, 0.8),
  gem: (x, y, z, s) => (Math.abs(x) + Math.abs(y) + Math.abs(z) - s * 1.15) * 0.577,
} satisfies Record<Shape, Distance>;

/** Height of the centre of a solid that stands on the floor. */
export function restingHeight(shape: Shape, s: number): number {
  if (shape === "gem") return s * 1.15;
  return shape === "cube" ? s * 0.82 + 0.03 : s;
}
