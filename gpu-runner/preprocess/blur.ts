import { gaussianBlur } from "./gaussian.ts";
import type { RgbPixels } from "./picture.ts";

export interface BlurOptions {
  /** Pixels. */
  sigma: number;
}

/** What the blur ControlNets were trained on: a Gaussian of the picture. */
export function blur(picture: RgbPixels, { sigma }: BlurOptions): RgbPixels {
  return { ...picture, data: Uint8Array.from(gaussianBlur(picture, sigma, 3), Math.round) };
}
