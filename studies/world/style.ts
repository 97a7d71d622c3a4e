/** Styles as filters over the plain rendering. Planes are size * size numbers in 0 .. 1, row by row. */
import { clamp01 } from "./vector.ts";
import type { Colour, Style } from "./words.ts";

export interface Rendering {
  size: number;
  /** Red, green, blue. */
  picture: readonly [Float64Array, Float64Array, Float64Array];
  edges: Float64Array;
}

/** Repeated smoothing over the four neighbours; the picture's sides meet. */
function blur(plane: Float64Array, times: number, size: number): Float64Array {
  let from = plane;
  for (let time = 0; time < times; time++) {
    const last = from;
    const at = (x: number, y: number) => last[((y + size) % size) * size + ((x + size) % size)]!;
    from = Float64Array.from({ length: size * size }, (_, i) => {
      const [x, y] = [i % size, Math.floor(i / size)];
      return (at(x, y - 1) + at(x, y + 1) + at(x - 1, y) + at(x + 1, y) + 4 * at(x, y)) / 8;
    });
  }
  return from;
}

type Pixel = (index: number) => Colour;

const at = (planes: readonly [Float64Array, Float64Array, Float64Array], i: number): Colour => [
  planes[0][i]!,
  planes[1][i]!,
  planes[2][i]!,
];
const mapped = (colour: Colour, change: (value: number, channel: number) => number): Colour => [
  change(colour[0], 0),
  change(colour[1], 1),
  change(colour[2], 2),
];
const between = (a: Colour, b: Colour, share: number) => mapped(a, (value, channel) => value * (1 - share) + b[channel]! * share);

const filters = {
  "": ({ picture }) => {
    return i => at(picture, i);
  },
  "a sketch of": rendering => {
    const [line, soft] = [blur(rendering.edges, 1, rendering.size), blur(luminance(rendering), 3, rendering.size)];
    return i => between([0.96, 0.95, 0.91], [0.15, 0.15, 0.2], clamp01(Math.max(line[i]! * 1.7, 0.45 * (1 - soft[i]!) ** 2)));
  },
  "a cartoon of": ({ picture, edges, size }) => {
    const line = blur(edges, 1, size);
    const flat = (value: number) => {
      const level = Math.round(value * 4) / 4;
      return level * 0.35 + clamp01((level - 0.5) * 1.25 + 0.55) * 0.65;
    };
    return i => mapped(at(picture, i), value => flat(value) * (1 - clamp01(line[i]! * 2.2)));
  },
  "a watercolor of": ({ picture, edges, size }) => {
    const line = blur(edges, 2, size);
    const wash = soft(picture, 6, size);
    return i => mapped(at(wash, i), value => clamp01(value * 0.7 + 0.3 - line[i]! * 0.15));
  },
  "a neon": rendering => {
    const { picture, edges, size } = rendering;
    const [line, glow, light, hues] = [blur(edges, 1, size), blur(edges, 6, size), luminance(rendering), soft(picture, 2, size)];
    const anyEdge = edges.some(edge => edge > 0) ? 1 : 0;
    return i => {
      const colour = at(hues, i);
      const brightest = Math.max(...colour) + 0.05;
      const dark = [0.03, 0.02, 0.07];
      return mapped(colour, (value, channel) => {
        const hue = value / brightest;
        return dark[channel]! + hue * light[i]! * 0.22 * anyEdge + line[i]! * 1.6 * (hue * 0.8 + 0.2) * 1.1 + glow[i]! * 2.2 * hue * 0.8;
      });
    };
  },
  "a blueprint of": ({ edges, size }) => {
    const line = blur(edges, 1, size);
    return i => {
      const grid = (i % size) % 16 === 0 || Math.floor(i / size) % 16 === 0 ? 0.12 : 0;
      const ink = grid + clamp01(line[i]! * 2) * 0.85;
      return [0.06 + ink * 0.9, 0.2 + ink * 0.95, 0.5 + ink];
    };
  },
  "a risograph of": rendering => {
    const [light, line] = [blur(luminance(rendering), 1, rendering.size), blur(rendering.edges, 1, rendering.size)];
    const inks: readonly [Colour, Colour, Colour] = [
      [0.1, 0.25, 0.45],
      [0.98, 0.42, 0.45],
      [0.99, 0.94, 0.82],
    ];
    const ink = (value: number) => (value < 0.38 ? inks[0] : value < 0.68 ? inks[1] : inks[2]);
    return i => between(ink(light[i]!), inks[0], clamp01(line[i]! * 1.5));
  },
} satisfies Record<Style, (rendering: Rendering) => Pixel>;

function soft(planes: Rendering["picture"], times: number, size: number): Rendering["picture"] {
  return [blur(planes[0], times, size), blur(planes[1], times, size), blur(planes[2], times, size)];
}

function luminance({ picture: [red, green, blue] }: Rendering): Float64Array {
  return red.map((value, i) => 0.3 * value + 0.59 * green[i]! + 0.11 * blue[i]!);
}

/** RGB bytes of a rendering in a style. */
export function inStyle(style: Style, rendering: Rendering): Uint8Array {
  const pixel = filters[style](rendering);
  const bytes = new Uint8Array(rendering.size ** 2 * 3);
  for (let i = 0; i < rendering.size ** 2; i++) bytes.set(mapped(pixel(i), toByte), i * 3);
  return bytes;
}

export const toByte = (value: number) => Math.floor(clamp01(value) * 255 + 0.5);
