/** Tensors as tests write them: from memory, also in half precision. */
import { bytesOf, type TensorToWrite } from "../../../gpu-runner/weights/safetensors-write.ts";

/** A tensor held in memory, ready to be written. */
export function float32Tensor(name: string, shape: readonly number[], values: Float32Array): TensorToWrite {
  return { name, dtype: "F32", shape, data: () => [bytesOf(values)] };
}

/** fp32 to half precision with rounding to nearest even, as hardware does it. */
export function floatToHalf(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const magnitude = Math.abs(value);
  if (Number.isNaN(value)) return 0x7e00;
  if (magnitude >= 65520) return sign | 0x7c00;
  // Below 2^-14 halves are multiples of 2^-24; above, of 2^(exponent - 10).
  const exponent = Math.max(-14, Math.floor(Math.log2(magnitude || 1e-30)));
  const unit = 2 ** (exponent - 10);
  const steps = roundToEven(magnitude / unit);
  // Steps of 2048 carry into the next exponent, which is what adding the fields does by itself.
  return sign | (exponent === -14 ? steps : ((exponent + 14) << 10) + steps);
}

function roundToEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}
