/** How a picture becomes the map that a control reads: one row a preprocessor. */
import type { ControlPreprocessor } from "../../shared/picture.ts";
import type { Proof } from "../../shared/support.ts";
import { type BlurOptions, blur } from "./blur.ts";
import { type CannyOptions, canny } from "./canny.ts";
import { type MaskOptions, mask } from "./mask.ts";
import type { RgbPixels } from "./picture.ts";
import { type ScribbleOptions, scribble } from "./scribble.ts";
import { type TileOptions, tile } from "./tile.ts";

/** What each preprocessor may be told. */
export interface PreprocessorOptions {
  none: Record<never, never>;
  canny: CannyOptions;
  scribble: ScribbleOptions;
  tile: TileOptions;
  blur: BlurOptions;
  mask: MaskOptions;
}

interface Preprocessor<Options> {
  title: string;
  defaults: Options;
  run(picture: RgbPixels, options: Options): RgbPixels;
  proof: Proof;
}

export const preprocessors: { readonly [Name in ControlPreprocessor]: Preprocessor<PreprocessorOptions[Name]> } = {
  none: { title: "None: it is a map already", defaults: {}, run: picture => picture, proof: "reference" },
  canny: {
    title: "Canny edges",
    defaults: { lowThreshold: 100, highThreshold: 200, l2Gradient: false },
    run: canny,
    proof: "reference",
  },
  scribble: { title: "Scribble (XDoG)", defaults: { threshold: 32 }, run: scribble, proof: "second-implementation" },
  // An eighth is what the tile models of ControlNet 1.1 were trained with.
  tile: { title: "Tile", defaults: { factor: 8 }, run: tile, proof: "second-implementation" },
  blur: { title: "Gaussian blur", defaults: { sigma: 9 }, run: blur, proof: "reference" },
  mask: { title: "Mask", defaults: { threshold: 128 }, run: mask, proof: "second-implementation" },
};

/** A map of the picture's size. */
export function preprocess<Name extends ControlPreprocessor>(
  name: Name,
  picture: RgbPixels,
  options: Partial<PreprocessorOptions[Name]> = {},
): RgbPixels {
  const { run, defaults } = preprocessors[name];
  return run(picture, { ...defaults, ...options });
}
