/** What the UNet's inputs are fed for a prediction. */
import type { IpAdapterUse, PredictArgs, TensorF32 } from "../components.ts";
import { GraphError } from "../graph/ir.ts";
import type { UnetConfig } from "../weights/configs.ts";
import { resizeBicubic } from "./resize-bicubic.ts";
import { addedConditions, guidanceFeatures, timestepFeatures, type UnetFeatures } from "./unet.ts";

type ConditionArgs = Pick<PredictArgs, "sample" | "timesteps" | "encoderHiddenStates" | "added" | "guidance">;

/** The inputs of the plain UNet, which a ControlNet has too. Throws GraphError where the arguments do not fit one another. */
export function conditionFeeds(config: UnetConfig, args: ConditionArgs): Record<string, TensorF32> {
  const { sample, timesteps, encoderHiddenStates, added, guidance } = args;
  if (timesteps.length !== sample.shape[0])
    throw new GraphError("timesteps", "feed", `${sample.shape[0]}, one per item`, String(timesteps.length));
  const channels = config.levels[0]!.channels;
  const features = timestepFeatures(timesteps, channels, { flipSinToCos: config.flipSinToCos, shift: config.frequencyShift });
  return {
    sample,
    time_features: { data: features, shape: [timesteps.length, channels] },
    encoder_hidden_states: encoderHiddenStates,
    ...(config.added && added && { added_conditions: addedConditions(added, { ...config, added: config.added }) }),
    ...(config.guidanceWidth && guidance && { guidance_features: guidanceFeatures(guidance, config.guidanceWidth) }),
  };
}

/** Which UNet a prediction needs as far as ControlNets, T2I-Adapters and IP-Adapters go. */
export function featuresOf({ control, t2iFeatures, ipAdapters }: PredictArgs): Pick<UnetFeatures, "control" | "t2i" | "ipAdapters"> {
  return {
    control: control !== undefined,
    t2i: t2iFeatures?.length ?? 0,
    ipAdapters: (ipAdapters ?? []).map(({ mask }) => ({ masked: mask !== undefined })),
  };
}

/** The inputs of these features; `keysValues` has what `buildIpKeysValues` made of each IP-Adapter's tokens. */
export function featureFeeds(
  config: UnetConfig,
  { sample, control, t2iFeatures, ipAdapters }: PredictArgs,
  keysValues: readonly Readonly<Record<string, TensorF32>>[],
): Record<string, TensorF32> {
  const [batch, , height, width] = sample.shape as [number, number, number, number];
  const sizes = levelSizes(config, height, width);
  const feeds: Record<string, TensorF32> = {};
  const skips = skipSizes(config, sizes);
  control?.down.forEach((residual, i) => {
    feeds[`control_down.${i}`] = expandResidual(residual, skips[i] ?? [1, 1]);
  });
  if (control) feeds.control_mid = expandResidual(control.mid, sizes.at(-1)!);
  t2iFeatures?.forEach((feature, i) => {
    feeds[`t2i.${i}`] = feature;
  });
  ipAdapters?.forEach((use, i) => {
    for (const [name, tensor] of Object.entries(keysValues[i]!)) feeds[`ip_adapter.${i}.${name}`] = tensor;
    Object.assign(feeds, gainFeeds(`ip_adapter.${i}.gain`, use, batch, sizes));
  });
  return feeds;
}

type Size = readonly [height: number, width: number];

function levelSizes({ levels }: UnetConfig, height: number, width: number): Size[] {
  const sizes: Size[] = [[height, width]];
  for (let i = 1; i < levels.length; i++) {
    const [h, w] = sizes[i - 1]!;
    sizes.push([Math.ceil(h / 2), Math.ceil(w / 2)]);
  }
  return sizes;
}

/** Of each skip in its order: the first convolution's, then each level's layers, then its downsampler's. */
function skipSizes({ levels }: UnetConfig, sizes: readonly Size[]): Size[] {
  const below = (i: number): Size[] => (i + 1 < sizes.length ? [sizes[i + 1]!] : []);
  return [sizes[0]!, ...levels.flatMap((level, i) => [...Array<Size>(level.layers).fill(sizes[i]!), ...below(i)])];
}

/** One of [B, C, 1, 1], as global pooling gives it, is repeated over all pixels. */
function expandResidual(residual: TensorF32, [height, width]: Size): TensorF32 {
  const [batch, channels, h, w] = residual.shape as [number, number, number, number];
  const size = height * width;
  if (h !== 1 || w !== 1 || size === 1) return residual;
  const data = new Float32Array(batch * channels * size);
  residual.data.forEach((value, row) => {
    data.fill(value, row * size, (row + 1) * size);
  });
  return { data, shape: [batch, channels, height, width] };
}

/** An IP-Adapter's weight per item, or where it has a mask, weight times mask per item and pixel of each level. */
function gainFeeds(name: string, { weights, mask }: IpAdapterUse, batch: number, sizes: readonly Size[]): Record<string, TensorF32> {
  if (weights.length !== batch) throw new GraphError(name, "feed", `${batch} weights, one per item`, String(weights.length));
  if (!mask) return { [name]: { data: Float32Array.from(weights), shape: [batch, 1, 1] } };
  const masks = mask.shape[0]!;
  if (masks !== 1 && masks !== batch) throw new GraphError(name, "feed", `a mask [1 or ${batch}, h, w]`, `[${mask.shape}]`);
  return Object.fromEntries(
    sizes.map((size, level) => {
      const resized = resizeBicubic(mask, size);
      const pixels = size[0] * size[1];
      const data = Float32Array.from({ length: batch * pixels }, (_, i) => {
        const item = Math.floor(i / pixels);
        return weights[item]! * resized.data[masks === 1 ? i % pixels : i]!;
      });
      return [`${name}.${level}`, { data, shape: [batch, pixels, 1] }];
    }),
  );
}
