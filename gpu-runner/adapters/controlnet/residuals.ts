/** What becomes of a ControlNet's residuals before they reach the UNet (diffusers' ControlNetModel.forward and MultiControlNetModel). */
import type { TensorF32 } from "../../components.ts";
import { GraphError } from "../../graph/ir.ts";

/** Added to the UNet's skips in their order, and to its middle block's result. */
export interface ControlResiduals {
  down: readonly TensorF32[];
  mid: TensorF32;
}

export interface ResidualScaling {
  /** One per batch item; 0 leaves an item alone. */
  weights: readonly number[];
  /** Deep layers count more than early ones, the picture is to be guessed from the control map alone. */
  guessMode: boolean;
  /** Means over height and width, [B, C, 1, 1], for nets that were trained so (the control "shuffle"). */
  globalPool: boolean;
}

/** Scaled as the reference does; in guess mode the residuals have factors from 0.1 to 1, evenly spaced in their logarithm. */
export function scaleResiduals({ down, mid }: ControlResiduals, scaling: ResidualScaling): ControlResiduals {
  const all = [...down, mid];
  const graded = scaling.guessMode && !scaling.globalPool;
  const scaled = all.map((tensor, i) => {
    const factor = graded ? 10 ** (i / (all.length - 1) - 1) : 1;
    const items = scaleItems(
      tensor,
      scaling.weights.map(weight => weight * factor),
    );
    return scaling.globalPool ? spatialMeans(items) : items;
  });
  return { down: scaled.slice(0, -1), mid: scaled.at(-1)! };
}

/** The sum over several nets; those with [B, C, 1, 1] count for every pixel. Throws GraphError where the nets don't have the same layers. */
export function sumResiduals(nets: readonly ControlResiduals[]): ControlResiduals {
  return nets.reduce((sum, net) => {
    if (net.down.length !== sum.down.length)
      throw new GraphError("controlnet", "sum", `${sum.down.length} residuals of every net`, String(net.down.length));
    return { down: net.down.map((tensor, i) => addTensors(sum.down[i]!, tensor, `down ${i}`)), mid: addTensors(sum.mid, net.mid, "mid") };
  });
}

function scaleItems({ data, shape }: TensorF32, factors: readonly number[]): TensorF32 {
  if (factors.length !== shape[0]) throw new GraphError("controlnet", "weights", `${shape[0]}, one per item`, String(factors.length));
  const size = data.length / factors.length;
  const out = new Float32Array(data.length);
  for (const [item, factor] of factors.entries()) for (let i = item * size; i < (item + 1) * size; i++) out[i] = data[i]! * factor;
  return { data: out, shape };
}

function spatialMeans({ data, shape }: TensorF32): TensorF32 {
  const [batch, channels] = shape as [number, number];
  const size = data.length / (batch * channels);
  const means = Float32Array.from({ length: batch * channels }, (_, row) => {
    let sum = 0;
    for (let i = row * size; i < (row + 1) * size; i++) sum += data[i]!;
    return sum / size;
  });
  return { data: means, shape: [batch, channels, 1, 1] };
}

function addTensors(a: TensorF32, b: TensorF32, name: string): TensorF32 {
  const [large, small] = a.data.length >= b.data.length ? [a, b] : [b, a];
  const pooled = small.shape[2] === 1 && small.shape[3] === 1 && String(small.shape.slice(0, 2)) === String(large.shape.slice(0, 2));
  if (String(large.shape) !== String(small.shape) && !pooled)
    throw new GraphError(`controlnet ${name}`, "sum", `[${a.shape}] as of the first net`, `[${b.shape}]`);
  const size = large.data.length / small.data.length;
  const out = new Float32Array(large.data.length);
  for (let i = 0; i < out.length; i++) out[i] = large.data[i]! + small.data[size === 1 ? i : Math.floor(i / size)]!;
  return { data: out, shape: large.shape };
}
