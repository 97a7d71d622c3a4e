/** IP-Adapters on their base: what the encoder sees, the image tokens, and noise predictions with and without the picture. */
import { z } from "zod";
import { type IpAdapter, type OpenIpAdapterOptions, openIpAdapter } from "../../adapters/ip-adapter/ip-adapter.ts";
import type { IpAdapterUse, LoraUse, TensorF32 } from "../../components.ts";
import { float32Input, type GoldenCase, type GoldenTensor, type VerifyContext, type VerifyKind } from "../kind.ts";
import { unsupportedBase } from "../model-support.ts";
import { noisePrediction } from "./adapter-outputs.ts";

const paramsSchema = z.object({
  imageEncoder: z.string().optional(),
  resamplerHeads: z.int().optional(),
  /** Of FaceID-plus' second version. */
  shortcut: z.number().nullish(),
});

export const ipAdapterKind: VerifyKind = {
  kind: "ip-adapter",
  supports: (_, modelPath) => unsupportedBase(modelPath),
  async run(goldenCase, context) {
    const { unet } = await context.model();
    const { imageEncoder, resamplerHeads } = paramsSchema.parse(goldenCase.params);
    const options: OpenIpAdapterOptions = {
      provider: "cpu",
      cacheDir: context.cacheDir,
      ...(imageEncoder !== undefined && { imageEncoder: context.path(imageEncoder) }),
      ...(resamplerHeads !== undefined && { resamplerHeads }),
    };
    const [adapter] = goldenCase.adapters ?? [];
    if (!adapter) throw new Error("adapters: expected one, got none");
    const opened = await openIpAdapter(context.path(adapter.file), unet, options);
    try {
      return await outputs(goldenCase, context, opened, adapter.weight);
    } finally {
      await opened.release();
    }
  },
};

async function outputs(
  goldenCase: GoldenCase,
  context: VerifyContext,
  adapter: IpAdapter,
  weight: number,
): Promise<Record<string, GoldenTensor>> {
  const { inputs, params } = goldenCase;
  const pixels = "pixel_values" in inputs ? rows(float32Input(context, "pixel_values")) : [null];
  const faces = "face_embeds" in inputs ? rows(float32Input(context, "face_embeds")) : [];
  const references = pixels.map((pixelValues, i) => ({ pixelValues, weight: 1, ...(faces[i] && { face: faces[i] }) }));
  const { tokens, unconditional } = await adapter.tokens(references, paramsSchema.parse(params).shortcut ?? null);
  const batch = context.input("sample").shape[0]!;
  const loras = adapter.lora && Array.from({ length: batch }, (): LoraUse[] => [{ adapter: adapter.lora!, weight: 1, dora: null }]);
  const predict = (own: TensorF32): Promise<TensorF32> =>
    noisePrediction(goldenCase, context, {
      ipAdapters: [useOf(adapter, own, batch, weight, mask(goldenCase, context))],
      ...(loras && { loras }),
    });
  return {
    ...("pixel_values" in inputs && { image_embeds: await adapter.embed(float32Input(context, "pixel_values")) }),
    ...("image_embeds_uncond" in goldenCase.expected && { image_embeds_uncond: await repeatedNothing(adapter, pixels.length) }),
    image_tokens: tokens,
    image_tokens_uncond: unconditional,
    noise_pred: await predict(tokens),
    noise_pred_uncond: await predict(unconditional),
  };
}

function mask(goldenCase: GoldenCase, context: VerifyContext): TensorF32 | undefined {
  return "mask" in goldenCase.inputs ? float32Input(context, "mask") : undefined;
}

function useOf({ layers }: IpAdapter, tokens: TensorF32, batch: number, weight: number, area: TensorF32 | undefined): IpAdapterUse {
  const repeated = new Float32Array(tokens.data.length * batch);
  for (let b = 0; b < batch; b++) repeated.set(tokens.data, b * tokens.data.length);
  return {
    layers,
    tokens: { data: repeated, shape: [batch, ...tokens.shape.slice(1)] },
    weights: Array<number>(batch).fill(weight),
    ...(area && { mask: area }),
  };
}

async function repeatedNothing(adapter: IpAdapter, count: number): Promise<TensorF32> {
  const { data, shape } = await adapter.embedNothing();
  const repeated = new Float32Array(data.length * count);
  for (let i = 0; i < count; i++) repeated.set(data, i * data.length);
  return { data: repeated, shape: [count, ...shape.slice(1)] };
}

/** [n, ...] as n of [1, ...]. */
function rows({ data, shape }: TensorF32): TensorF32[] {
  const size = data.length / shape[0]!;
  return Array.from({ length: shape[0]! }, (_, i) => ({ data: data.slice(i * size, (i + 1) * size), shape: [1, ...shape.slice(1)] }));
}
