/** What the pipeline's tests share: a request, and a model made of arithmetic. */
import type { DiffusionModel, TensorF32 } from "../../../gpu-runner/components.ts";
import { ENGINE_VERSION } from "../../../shared/engine.ts";
import type { PictureRequest } from "../../../shared/picture.ts";

export const request: PictureRequest = {
  engine_version: ENGINE_VERSION,
  task: "text-to-image",
  model: `sha256:${"5a".repeat(32)}`,
  prompt: 'a red fox, "näive" <b> 日本 & 🦊',
  negative_prompt: "blurry",
  width: 64,
  height: 48,
  steps: 4,
  guidance_scale: 5,
  guidance_rescale: 0.7,
  seed: 7,
  sampler: "dpmpp_2m_sde",
  sampler_options: { schedule: "karras", solver_type: "heun" },
  adapters: [],
  format: "png",
};

/** Red grows with channel 0, green falls with channel 1, blue mixes 2 and 3: what `arithmeticModel` decodes, per latent. */
export const decoderWeights = [
  [0.3, 0, 0, 0, 0.1],
  [0, -0.2, 0, 0, 0],
  [0, 0, 0.1, 0.2, -0.3],
] as const;

/**
 * A model whose prediction is the mean hidden state of its item plus a tenth of the sample; a text's hidden state is its second token id.
 * @param seen gets the batch size of every prediction
 */
export function arithmeticModel(seen: number[] = [], unetInputChannels = 4): DiffusionModel {
  const part = (value: (id: number) => number, ids: readonly (readonly number[])[]): TensorF32 => ({
    data: Float32Array.from(ids, list => value(list[1]!)),
    shape: [ids.length, 1, 1],
  });
  return {
    description: {
      hash: request.model,
      family: "sd1",
      predictionType: "epsilon",
      latentChannels: 4,
      vaeScaleFactor: 8,
      defaultWidth: 64,
      defaultHeight: 64,
      unetInputChannels,
      crossAttentionDim: 1,
      vae: { scalingFactor: 0.5 },
      textEncoder: { maxLength: 77, hiddenSize: 1 },
      tokenizer: { maxLength: 77 },
      schedulerConfig: {},
      parameters: { unet: 0, vae: 0, textEncoder: 0 },
    },
    encodeText: async ids => ({
      lastHiddenState: part(id => id / 1000, ids),
      penultimate: part(id => id, ids),
      penultimateNormed: part(id => id / 100, ids),
      skip2Normed: part(id => id / 10, ids),
      poolerOutput: { data: new Float32Array(ids.length), shape: [ids.length, 1] },
    }),
    async predict({ sample, encoderHiddenStates }) {
      seen.push(sample.shape[0]!);
      const size = sample.data.length / sample.shape[0]!;
      return { data: sample.data.map((x, i) => 0.1 * x + encoderHiddenStates.data[Math.floor(i / size)]!), shape: sample.shape };
    },
    encodeImage: () => Promise.reject(new Error("not used")),
    async decodeLatents({ data, shape }) {
      const [batch, channels, height, width] = shape as [number, number, number, number];
      const colour = (item: number, weights: readonly number[], y: number, x: number) =>
        weights.reduce((sum, weight, c) => {
          const latent = c < channels ? data[((item * channels + c) * height + y) * width + x]! * 0.5 : 1;
          return sum + weight * latent;
        }, 0);
      const pixels = Array.from({ length: batch }, (_, item) =>
        decoderWeights.map(weights =>
          Array.from({ length: height * 8 }, (_, y) =>
            Array.from({ length: width * 8 }, (_, x) => colour(item, weights, Math.floor(y / 8), Math.floor(x / 8))),
          ),
        ),
      );
      return { data: Float32Array.from(pixels.flat(3)), shape: [batch, 3, height * 8, width * 8] };
    },
    release: async () => {},
  };
}
