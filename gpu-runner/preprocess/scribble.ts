/** A drawing with a broad pen: differences of two Gaussians (XDoG, Winnemöller et al., 2012), as controlnet_aux's scribble_xdog. */
import { gaussianBlur } from "./gaussian.ts";
import { greyPixels, type RgbPixels } from "./picture.ts";

export interface ScribbleOptions {
  /** Twice the least darkness against the surroundings that is drawn, 0 .. 510. */
  threshold: number;
}

/** White strokes on black where a channel is darker than its surroundings. */
export function scribble(picture: RgbPixels, { threshold }: ScribbleOptions): RgbPixels {
  const { width, height } = picture;
  const [fine, coarse] = [gaussianBlur(picture, 0.5, 4), gaussianBlur(picture, 5, 4)];
  const strokes = Array.from({ length: width * height }, (_, i) => {
    const difference = Math.min(...[0, 1, 2].map(channel => coarse[3 * i + channel]! - fine[3 * i + channel]!));
    const paper = Math.trunc(Math.min(Math.max(255 - difference, 0), 255));
    return 2 * (255 - paper) > threshold ? 255 : 0;
  });
  return greyPixels(strokes, width, height);
}
