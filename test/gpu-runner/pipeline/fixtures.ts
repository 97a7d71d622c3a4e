/** What the pipeline's tests share: a request, and a model made of arithmetic. */
import { tmpdir } from "node:os";
import { AdapterStore } from "../../../gpu-runner/adapters/store.ts";
import type { DiffusionModel, PredictArgs, TensorF32 } from "../../../gpu-runner/components.ts";
import type { PictureContext, PictureModel } from "../../../gpu-runner/pipeline/context.ts";
import { concat, split } from "../../../gpu-runner/pipeline/tensors.ts";
import { clipTokenizer, vocabularyFromMerges } from "../../../gpu-runner/tokenizer/clip.ts";
import type { ModelDescription } from "../../../gpu-runner/weights/describe.ts";
import { ENGINE_VERSION } from "../../../shared/engine.ts";
import { type PictureRequest, plainPicture } from "../../../shared/picture.ts";

export const request: PictureRequest = {
  ...plainPicture,
  engine_version: ENGINE_VERSION,
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
};

/** Red grows with channel 0, green falls with channel 1, blue mixes 2 and 3: what `arithmeticModel` decodes, per latent. */
export const decoderWeights = [
  [0.3, 0, 0, 0, 0.1],
  [0, -0.2, 0, 0, 0],
  [0, 0, 0.1, 0.2, -0.3],
] as const;

const tokenizer = clipTokenizer(vocabularyFromMerges([], 77));

/**
 * A model whose prediction is the mean hidden state of its item plus a tenth of the sample; a text's hidden state is the sum of a chunk's ids
 * without bos and padding, divided by 1000 per layer that is not left out.
 */
export function arithmeticModel(changes: Partial<ModelDescription> = {}, seen: PredictArgs[] = []): DiffusionModel {
  const part = (scale: number, ids: readonly (readonly number[])[]): TensorF32 => ({
    data: Float32Array.from(ids, list => scale * list.slice(1, list.indexOf(list.at(-1)!)).reduce((sum, id) => sum + id, 0)),
    shape: [ids.length, 1, 1],
  });
  return {
    description: {
      hash: request.model,
      family: "sd1",
      layout: "diffusers",
      tasks: ["text-to-image", "image-to-image", "inpaint"],
      predictionType: "epsilon",
      latentChannels: 4,
      vaeScaleFactor: 8,
      defaultWidth: 64,
      defaultHeight: 64,
      unetInputChannels: 4,
      crossAttentionDim: 1,
      addedConditions: null,
      readsGuidance: false,
      vae: { scalingFactor: 0.5 },
      textEncoders: [{ component: "textEncoder", width: 1, maxLength: 77, layers: 12, vocabularySize: 514, projectionWidth: null }],
      tokenizers: [{ folder: null, pad: null, maxLength: 77 }],
      schedulerConfig: {},
      ...changes,
    },
    get unet(): never {
      throw new Error("not used");
    },
    weightShapes: {},
    encodeText: async ({ inputIds }) => ({
      hidden: skip => part(0.001 * 10 ** skip, inputIds),
      normed: skip => part(0.001 * 10 ** skip, inputIds),
      pooled: { data: new Float32Array(inputIds.length), shape: [inputIds.length, 1] },
    }),
    async predict(args) {
      seen.push(args);
      const { sample, encoderHiddenStates } = args;
      const [batch, , height, width] = sample.shape as [number, number, number, number];
      const means = split(encoderHiddenStates.data, batch).map(states => states.reduce((sum, value) => sum + value, 0) / states.length);
      const outputs = split(sample.data, batch).map((values, i) => values.slice(0, 4 * height * width).map(x => 0.1 * x + means[i]!));
      return { data: concat(outputs), shape: [batch, 4, height, width] };
    },
    async encodeImage({ data, shape }) {
      const [batch, , height, width] = shape as [number, number, number, number];
      const latent = (i: number) => {
        const [channel, y, x] = [Math.floor(i / ((height * width) / 64)), Math.floor(i / (width / 8)) % (height / 8), i % (width / 8)];
        return channel < 3 ? data[(channel * height + 8 * y) * width + 8 * x]! : 0;
      };
      const mean = {
        data: Float32Array.from({ length: (batch * 4 * height * width) / 64 }, (_, i) => latent(i)),
        shape: [batch, 4, height / 8, width / 8],
      };
      return { mean, logvar: { data: mean.data.map(() => -30), shape: mean.shape } };
    },
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
    decodePreview: null,
    release: async () => {},
  };
}

export const unitPreviewMap = [
  [1, 0, 0, 0, 0],
  [0, 1, 0, 0, 0],
  [0, 0, 1, 0, 0],
] as const;

/** A context that holds one model, and files by their SHA-256. */
export function contextWith(model: DiffusionModel, files: Readonly<Record<string, string>> = {}): PictureContext {
  const pictureModel: PictureModel = { model, tokenizers: model.description.textEncoders.map(() => tokenizer), previewMap: unitPreviewMap };
  const find = (name: string) => {
    const path = files[name];
    if (path === undefined) throw new Error(`no file ${name}`);
    return path;
  };
  const adapters = new AdapterStore({ provider: "cpu", cacheDir: tmpdir(), budget: 0 });
  return { inputs: { file: find, adapter: find }, adapters, model: async () => pictureModel };
}
