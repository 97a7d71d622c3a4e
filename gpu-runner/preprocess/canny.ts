/**
 * Edges after Canny (1986), as OpenCV's Canny finds them in a colour picture: Sobel gradients of aperture 3, of each pixel's strongest channel;
 * thinning across the gradient's direction, rounded to eight; weak edges stay where they touch strong ones.
 */
import { greyPixels, type RgbPixels } from "./picture.ts";

export interface CannyOptions {
  /** Gradients up to the first are no edges, beyond the second strong ones. */
  lowThreshold: number;
  highThreshold: number;
  /** Length of the gradient: sqrt(dx^2 + dy^2), or |dx| + |dy|. */
  l2Gradient: boolean;
}

interface Gradients {
  dx: Int16Array;
  dy: Int16Array;
  /** With a border of zeros: (width + 2) * (height + 2). */
  magnitude: Int32Array;
}

/** White edges on black. */
export function canny(picture: RgbPixels, options: CannyOptions): RgbPixels {
  const { width, height } = picture;
  const [low, high] = thresholds(options);
  const edges = thin(gradients(picture, options.l2Gradient), width, height, low, high);
  return greyPixels(connect(edges, width, height), width, height);
}

/** Whole numbers, as the gradients are; squared where those are. */
function thresholds({ lowThreshold, highThreshold, l2Gradient }: CannyOptions): [number, number] {
  const sorted = [Math.min(lowThreshold, highThreshold), Math.max(lowThreshold, highThreshold)] as const;
  const level = (threshold: number) => (l2Gradient ? Math.floor(Math.min(32767, threshold) ** 2) : Math.floor(threshold));
  return [level(sorted[0]), level(sorted[1])];
}

/** Of each pixel's strongest channel, the first of equals; pixels at the picture's edge go on beyond it. */
function gradients({ data, width, height }: RgbPixels, squared: boolean): Gradients {
  const dx = new Int16Array(width * height);
  const dy = new Int16Array(width * height);
  const magnitude = new Int32Array((width + 2) * (height + 2));
  for (let y = 0; y < height; y++) {
    const [above, here, below] = [Math.max(y - 1, 0), y, Math.min(y + 1, height - 1)].map(row => row * width);
    for (let x = 0; x < width; x++) {
      const [left, right] = [Math.max(x - 1, 0), Math.min(x + 1, width - 1)];
      let strongest = -1;
      for (let channel = 0; channel < 3; channel++) {
        const at = (row: number, column: number) => data[3 * (row + column) + channel]!;
        const [northWest, northEast, southWest, southEast] = [at(above!, left), at(above!, right), at(below!, left), at(below!, right)];
        const gx = northEast - northWest + 2 * (at(here!, right) - at(here!, left)) + southEast - southWest;
        const gy = southWest - northWest + 2 * (at(below!, x) - at(above!, x)) + southEast - northEast;
        const length = squared ? gx * gx + gy * gy : Math.abs(gx) + Math.abs(gy);
        if (length <= strongest) continue;
        strongest = length;
        dx[y * width + x] = gx;
        dy[y * width + x] = gy;
      }
      magnitude[(y + 1) * (width + 2) + x + 1] = strongest;
    }
  }
  return { dx, dy, magnitude };
}

const none = 0;
const weak = 1;
const strong = 2;
/** tan(22.5 degrees) in 15 bits. */
const tangent = Math.round((Math.SQRT2 - 1) * 2 ** 15);

/** What is a maximum across its gradient: weak beyond `low`, strong beyond `high`. */
function thin({ dx, dy, magnitude }: Gradients, width: number, height: number, low: number, high: number): Uint8Array {
  const edges = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [at, i] = [(y + 1) * (width + 2) + x + 1, y * width + x];
      const length = magnitude[at]!;
      if (length > low && isMaximum(magnitude, at, length, width + 2, dx[i]!, dy[i]!)) edges[i] = length > high ? strong : weak;
    }
  }
  return edges;
}

/** Of two equal neighbours across a horizontal or vertical gradient the first counts. */
function isMaximum(magnitude: Int32Array, at: number, length: number, stride: number, dx: number, dy: number): boolean {
  const [x, y] = [Math.abs(dx), Math.abs(dy) * 2 ** 15];
  if (y < x * tangent) return length > magnitude[at - 1]! && length >= magnitude[at + 1]!;
  if (y > x * tangent + x * 2 ** 16) return length > magnitude[at - stride]! && length >= magnitude[at + stride]!;
  const side = (dx ^ dy) < 0 ? -1 : 1;
  return length > magnitude[at - stride - side]! && length > magnitude[at + stride + side]!;
}

/** Strong edges, and the weak ones that touch them at a side or a corner, one after another. */
function connect(edges: Uint8Array, width: number, height: number): Uint8Array {
  const result = new Uint8Array(edges.length);
  const open: number[] = [];
  for (let i = 0; i < edges.length; i++) {
    if (edges[i] !== strong) continue;
    result[i] = 255;
    open.push(i);
  }
  for (let i = open.pop(); i !== undefined; i = open.pop()) {
    const [x, y] = [i % width, Math.floor(i / width)];
    for (let row = Math.max(y - 1, 0); row <= Math.min(y + 1, height - 1); row++) {
      for (let column = Math.max(x - 1, 0); column <= Math.min(x + 1, width - 1); column++) {
        const neighbour = row * width + column;
        if (edges[neighbour] === none || result[neighbour] === 255) continue;
        result[neighbour] = 255;
        open.push(neighbour);
      }
    }
  }
  return result;
}
