import { greyPixels, type RgbPixels } from "./picture.ts";

export interface MaskOptions {
  /** Luma (ITU-R BT.601) from which a pixel is white; null: the luma itself. */
  threshold: number | null;
}

/** Black and white, or grey. */
export function mask({ data, width, height }: RgbPixels, { threshold }: MaskOptions): RgbPixels {
  const values = Array.from({ length: width * height }, (_, i) => {
    const luma = Math.round(0.299 * data[3 * i]! + 0.587 * data[3 * i + 1]! + 0.114 * data[3 * i + 2]!);
    if (threshold === null) return luma;
    return luma >= threshold ? 255 : 0;
  });
  return greyPixels(values, width, height);
}
