/** Gaussian blur of bytes by three box blurs (Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering"). */

const passes = 3;
const unit = 2 ** 24;

/**
 * Edges continue. The blur ends some two and a half deviations from what it blurs; that, and rounding to bytes after each box, is as in
 * Pillow, with which diffusers and A1111 blur masks and pictures, so that crops around blurred masks are theirs.
 * @param deviation in pixels; 0 changes nothing
 */
export function gaussianBlur(plane: Uint8Array, width: number, height: number, deviation: number): Uint8Array {
  if (deviation === 0) return plane;
  const box = boxOf(deviation);
  const result = Uint8Array.from(plane);
  for (let pass = 0; pass < passes; pass++) {
    for (let y = 0; y < height; y++) blurLine(result, y * width, 1, width, box);
  }
  for (let pass = 0; pass < passes; pass++) {
    for (let x = 0; x < width; x++) blurLine(result, x, width, height, box);
  }
  return result;
}

interface Box {
  /** Neighbours on each side that count in full. */
  radius: number;
  /** Weight of each, and of the one beyond them on each side; all together `unit`. */
  inner: number;
  outer: number;
}

/** The box that has a third of the Gaussian's variance. */
function boxOf(deviation: number): Box {
  const variance = deviation ** 2 / passes;
  const radius = Math.floor((Math.sqrt(12 * variance + 1) - 1) / 2);
  const share = ((2 * radius + 1) * (radius * (radius + 1) - 3 * variance)) / (6 * (variance - (radius + 1) ** 2));
  // In single precision, as Pillow has it: between two bytes the last digit decides.
  const inner = Math.floor(Math.fround(unit / Math.fround((radius + share) * 2 + 1)));
  return { radius, inner, outer: Math.floor((unit - (2 * radius + 1) * inner) / 2) };
}

function blurLine(data: Uint8Array, start: number, stride: number, length: number, { radius, inner, outer }: Box): void {
  const line = Uint8Array.from({ length }, (_, i) => data[start + i * stride]!);
  const at = (i: number) => line[Math.min(Math.max(i, 0), length - 1)]!;
  let sum = 0;
  for (let i = -radius - 1; i < radius; i++) sum += at(i);
  for (let i = 0; i < length; i++) {
    sum += at(i + radius) - at(i - radius - 1);
    data[start + i * stride] = Math.floor((sum * inner + (at(i - radius - 1) + at(i + radius + 1)) * outer + unit / 2) / unit);
  }
}
