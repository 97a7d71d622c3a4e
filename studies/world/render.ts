import type { Scene } from "./scene.ts";
import { shade } from "./shade.ts";
import type { Stage } from "./stage.ts";
import { inStyle, toByte } from "./style.ts";
import { type Seen, trace } from "./trace.ts";
import { clamp01 } from "./vector.ts";

/** Square, row by row. */
export interface Picture {
  size: number;
  /** Red, green, blue. */
  rgb: Uint8Array;
  /** One byte a pixel; near is bright. */
  depth: Uint8Array;
  /** One byte a pixel, 0 or 255: where solids, their faces or depth end. */
  edges: Uint8Array;
  /** How many of its pixels show a solid. */
  solidPixels: number;
}

/** A staged scene as a picture with its depth and edges. @param size px */
export function render(scene: Scene, stage: Stage, size: number): Picture {
  const seen = trace(stage, size);
  const picture = [0, 1, 2].map(() => new Float64Array(size * size)) as [Float64Array, Float64Array, Float64Array];
  for (const [i, pixel] of seen.entries()) {
    const colour = shade(pixel, scene, stage);
    for (const channel of [0, 1, 2] as const) picture[channel][i] = colour[channel];
  }
  const { distance } = stage.camera;
  const depth = Float64Array.from(seen, pixel => clamp01(1 - (pixel.depth - distance * 0.45) / (distance * 1.1)));
  const edges = findEdges(seen, depth, size);
  return {
    size,
    rgb: inStyle(scene.style, { size, picture, edges }),
    depth: Uint8Array.from(depth, toByte),
    edges: Uint8Array.from(edges, toByte),
    solidPixels: seen.filter(({ solid }) => solid >= 0).length,
  };
}

/** 1 where a pixel and the one to its right or below differ in solid, normal or depth. */
function findEdges(seen: readonly Seen[], depth: Float64Array, size: number): Float64Array {
  const differ = (i: number, j: number) => {
    const [a, b] = [seen[i]!, seen[j]!];
    if (a.solid !== b.solid || Math.abs(depth[i]! - depth[j]!) > 0.06) return true;
    return a.solid >= 0 && a.normal.reduce((sum, value, axis) => sum + Math.abs(value - b.normal[axis]!), 0) > 0.55;
  };
  return Float64Array.from(seen, (_, i) => {
    const atEnd = i % size === size - 1 || i >= size * (size - 1);
    return !atEnd && (differ(i, i + 1) || differ(i, i + size)) ? 1 : 0;
  });
}
