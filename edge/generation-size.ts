import type { FieldError } from "../shared/errors.ts";
import type { GenerationRequest, ResolvedRequest } from "../shared/generation.ts";
import type { ModelManifest } from "../shared/model.ts";
import type { PixelSize } from "./picture-size.ts";

/**
 * Width and height where the request names neither: the model's; or with a picture to start from, its shape, at no more than the area that the
 * model is used to, plus what is painted around it.
 */
export function defaultSize(
  request: GenerationRequest,
  model: ModelManifest,
  source: { width: number | null; height: number | null } | undefined,
): PixelSize {
  const { defaults, size_multiple: multiple, min_size: least, max_size: most } = model;
  if (!source?.width || !source.height || request.width !== undefined || request.height !== undefined) return defaults;
  const scale = Math.min(1, Math.sqrt((defaults.width * defaults.height) / (source.width * source.height)));
  const fitted = (pixels: number, around: number) =>
    Math.min(most, Math.max(least, Math.round((pixels * scale) / multiple) * multiple + around));
  const { left = 0, right = 0, top = 0, bottom = 0 } = request.outpaint ?? {};
  return { width: fitted(source.width, left + right), height: fitted(source.height, top + bottom) };
}

export function sizeErrors(
  field: "width" | "height",
  got: number,
  { size_multiple: multiple, min_size: least, max_size: most, name }: ModelManifest,
): FieldError[] {
  if (got >= least && got <= most && got % multiple === 0) return [];
  return [{ field, expected: `a multiple of ${multiple} from ${least} to ${most}, as the model ${name} draws`, got: String(got) }];
}

/** Most pixels of a result. A second pass holds them all at once. */
const MAX_RESULT_PIXELS = 4096 * 4096;

/** What is wrong with the size of a second pass, or with what is painted around a picture. */
export function passErrors(
  { width, height, upscale, outpaint }: ResolvedRequest,
  { size_multiple: multiple }: ModelManifest,
): FieldError[] {
  const errors: FieldError[] = [];
  if (upscale && [width, height].some(pixels => (pixels * upscale.scale) % multiple !== 0)) {
    const expected = `a scale that makes ${width} x ${height} multiples of ${multiple}`;
    errors.push({ field: "upscale.scale", expected, got: String(upscale.scale) });
  } else if (upscale && width * height * upscale.scale ** 2 > MAX_RESULT_PIXELS) {
    const expected = `a scale that makes of ${width} x ${height} a picture of at most ${MAX_RESULT_PIXELS} pixels`;
    errors.push({ field: "upscale.scale", expected, got: String(upscale.scale) });
  }
  if (outpaint && (outpaint.left + outpaint.right >= width || outpaint.top + outpaint.bottom >= height))
    errors.push({ field: "outpaint", expected: `less than the result's ${width} x ${height}`, got: JSON.stringify(outpaint) });
  return errors;
}
