/**
 * Quick previews: a linear map from latents to RGB, found for each model by least squares on what its own decoder makes of random latents.
 */
import sharp from "sharp";
import type { DiffusionModel, TensorF32 } from "../components.ts";
import { philoxNoise } from "../noise/philox.ts";
import { toBytes, toUnitPictures } from "./pixels.ts";

/** Per colour: a weight for each latent channel, then a constant. Colours in -1..1. */
export type PreviewMap = readonly (readonly number[])[];

/** Latents per side of the fit, and of a patch of equal latents: decoders expect neighbours to be alike. */
const fitSize = 16;
const patchSize = 4;

/** Decodes one small picture; deterministic. */
export async function fitPreviewMap(model: DiffusionModel): Promise<PreviewMap> {
  const { latentChannels, vae } = model.description;
  const patches = fitSize / patchSize;
  const values = philoxNoise(0)(latentChannels * patches ** 2);
  const latents = Float32Array.from({ length: latentChannels * fitSize ** 2 }, (_, i) => {
    const [channel, y, x] = [Math.floor(i / fitSize ** 2), Math.floor(i / fitSize) % fitSize, i % fitSize];
    return values[(channel * patches + Math.floor(y / patchSize)) * patches + Math.floor(x / patchSize)]!;
  });
  const image = await model.decodeLatents({
    data: latents.map(value => value / vae.scalingFactor),
    shape: [1, latentChannels, fitSize, fitSize],
  });
  const rows = latentRows(latents, latentChannels);
  return meanColours(image).map(colours => leastSquares(rows, colours));
}

/**
 * A WebP data URL: by the model's own quick decoder where it came with one, else one pixel a latent.
 * @param latents [C, h, w] of one item, on the sampler's scale
 */
export async function drawPreview({ model, previewMap }: PreviewModel, latents: Float32Array, shape: readonly number[]): Promise<string> {
  const [, , height, width] = shape as [number, number, number, number];
  if (!model.decodePreview) return webpUrl(mapped(previewMap, latents, width, height), width, height);
  const image = await model.decodePreview({ data: latents, shape });
  return webpUrl(toBytes(toUnitPictures(image)[0]!), image.shape[3]!, image.shape[2]!);
}

interface PreviewModel {
  model: Pick<DiffusionModel, "decodePreview">;
  previewMap: PreviewMap;
}

function mapped(map: PreviewMap, latents: Float32Array, width: number, height: number): Uint8ClampedArray {
  const rows = latentRows(latents, latents.length / (width * height));
  return Uint8ClampedArray.from(rows.flatMap(row => map.map(weights => (dot(weights, row) + 1) * 127.5)));
}

async function webpUrl(pixels: Uint8ClampedArray, width: number, height: number): Promise<string> {
  const file = await sharp(pixels, { raw: { width, height, channels: 3 } })
    .webp({ quality: 80, effort: 0 })
    .toBuffer();
  return `data:image/webp;base64,${file.toString("base64")}`;
}

/** For each position its latents and a 1. */
function latentRows(latents: Float32Array, channels: number): number[][] {
  const plane = latents.length / channels;
  return Array.from({ length: plane }, (_, i) => [...Array.from({ length: channels }, (_, channel) => latents[channel * plane + i]!), 1]);
}

/** Mean of each colour over the pixels of each latent, [1, 3, H, W] to 3 lists. */
function meanColours({ data, shape }: TensorF32): number[][] {
  const [, colours, height, width] = shape as [number, number, number, number];
  const scale = height / fitSize;
  return Array.from({ length: colours }, (_, colour) => {
    const means = new Array<number>(fitSize ** 2).fill(0);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        means[Math.floor(y / scale) * fitSize + Math.floor(x / scale)]! += data[(colour * height + y) * width + x]! / scale ** 2;
      }
    }
    return means;
  });
}

/** Weights w that minimise |rows w - targets|, from the normal equations. A little ridge keeps a dead latent channel harmless. */
function leastSquares(rows: readonly (readonly number[])[], targets: readonly number[]): number[] {
  const ridge = 1e-6 * rows.length;
  const size = rows[0]!.length;
  const system = Array.from({ length: size }, (_, i) => [
    ...Array.from({ length: size }, (_, j) => rows.reduce((sum, row) => sum + row[i]! * row[j]!, i === j ? ridge : 0)),
    rows.reduce((sum, row, k) => sum + row[i]! * targets[k]!, 0),
  ]);
  // Gauss-Jordan without pivoting: the matrix is positive definite.
  for (const [i, pivot] of system.entries()) {
    for (const [j, other] of system.entries()) {
      if (j === i) continue;
      const factor = other[i]! / pivot[i]!;
      for (let k = i; k <= size; k++) other[k]! -= factor * pivot[k]!;
    }
  }
  return system.map((row, i) => row[size]! / row[i]!);
}

function dot(a: readonly number[], b: readonly number[]): number {
  return a.reduce((sum, value, i) => sum + value * b[i]!, 0);
}
