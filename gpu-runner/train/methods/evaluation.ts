/** Losses of an adapter that is there, as it is served: nothing is trained, and nothing but its file is known. */
import type { AdapterKind } from "../../../shared/adapter.ts";
import { scaleResiduals, sumResiduals } from "../../adapters/controlnet/residuals.ts";
import { type OpenedAdapters, openAdapter } from "../../adapters/registry.ts";
import type { LoraUse, PredictArgs, TrainableModel } from "../../components.ts";
import { type ItemAdapters, noAdapters } from "../../pipeline/item-adapters.ts";
import { joinInversions } from "../../pipeline/resolve-adapters.ts";
import type { EmbedReference, OpenedStep } from "../context.ts";
import { useOf } from "../own-use.ts";
import type { StepBatch, TrainingStep } from "../step.ts";
import { TrainedTensors } from "../trained-tensors.ts";
import type { MethodArgs } from "./index.ts";

type Base = Pick<PredictArgs, "sample" | "timesteps" | "encoderHiddenStates" | "added">;

/** What an adapter of a kind brings to a prediction. */
interface Served {
  texts?: Partial<ItemAdapters>;
  embed?: EmbedReference;
  readsMaps?: boolean;
  feeds(batch: StepBatch, base: Base): Promise<Partial<PredictArgs>>;
  release?(): Promise<void>;
}

interface ServeArgs {
  model: TrainableModel;
  /** Of the first concept: what an inversion's vectors stand for. */
  token: string;
}

const servers = {
  lora: (adapter, { model }) => {
    const use = { adapter, weight: 1, dora: null };
    const words = adapter.bundled.flatMap(inversion => (inversion.token === null ? [] : [{ word: inversion.token, inversion }]));
    return {
      texts: { textLoras: [use], inversions: joinInversions(words, { pictureModel: { model } }) },
      feeds: async batch => ({ loras: ofEach(batch, use) }),
    };
  },
  "textual-inversion": (inversion, { model, token }) => ({
    texts: { inversions: joinInversions([{ word: token, inversion }], { pictureModel: { model } }) },
    feeds: async () => ({}),
  }),
  hypernetwork: adapter => ({ feeds: async batch => ({ hypernetworks: ofEach(batch, { adapter, weight: 1 }) }) }),
  "ip-adapter": adapter => {
    const { layers, lora } = adapter;
    return {
      embed: async shown => {
        const pixelValues = shown && adapter.preprocess(await shown.source.condition(shown.isFlipped));
        if (pixelValues) return (await adapter.tokens([{ pixelValues, weight: 1 }])).tokens;
        return adapter.project({ embeds: await adapter.embedNothing() });
      },
      feeds: async batch => ({
        ipAdapters: [{ layers, tokens: batch.imageEmbeds!, weights: batch.timesteps.map(() => 1) }],
        ...(lora && { loras: ofEach<LoraUse>(batch, { adapter: lora, weight: 1, dora: null }) }),
      }),
      release: () => adapter.release(),
    };
  },
  controlnet: net => ({
    readsMaps: true,
    feeds: async (batch, base) => {
      const residuals = await net.run({ ...base, cond: batch.controlMap!, control: net.controls === null ? null : 0 });
      const scaling = { weights: batch.timesteps.map(() => 1), guessMode: false, globalPool: net.globalPool };
      return { control: sumResiduals([scaleResiduals(residuals, scaling)]) };
    },
    release: () => net.release(),
  }),
  "t2i-adapter": adapter => ({
    readsMaps: true,
    feeds: async batch => ({ t2iFeatures: await adapter.features(batch.controlMap!) }),
    release: () => adapter.release(),
  }),
} satisfies { readonly [K in AdapterKind]: (adapter: OpenedAdapters[K], args: ServeArgs) => Served };

function ofEach<T>({ timesteps }: StepBatch, use: T): T[][] {
  return timesteps.map(() => [use]);
}

/** @throws RangeError where no adapter is named; ModelError for one that does not fit the base */
export async function openEvaluation({ model, settings, request, adapter: path, options }: MethodArgs<"evaluation">): Promise<OpenedStep> {
  const { kind, adapter: hash } = settings;
  if (path === undefined || hash === null) throw new RangeError("settings.adapter: expected the adapter that is scored, got none");
  const args = { model, token: request.concepts[0]!.token };
  const served = await serve(kind, { hash, path, base: model, options }, args);
  return {
    step: new ServedStep(model, served),
    ...(served.embed && { embed: served.embed }),
    ...(served.readsMaps && { readsMaps: true }),
    given: { adapter: useOf(request, kind, path, hash, 0), texts: { ...noAdapters, ...served.texts } },
  };
}

async function serve<K extends AdapterKind>(kind: K, files: Parameters<typeof openAdapter>[1], args: ServeArgs): Promise<Served> {
  // The table's type ties each row to its kind; a lookup by a union loses that tie.
  const server = servers[kind] as (adapter: OpenedAdapters[K], args: ServeArgs) => Served;
  return server(await openAdapter(kind, files), args);
}

/** Predictions of the serving sessions, squared errors as a training has them. */
class ServedStep implements TrainingStep {
  readonly tensors = new TrainedTensors([]);
  readonly #model: TrainableModel;
  readonly #served: Served;

  constructor(model: TrainableModel, served: Served) {
    this.#model = model;
    this.#served = served;
  }

  gradients(): Promise<readonly number[]> {
    return Promise.reject(new RangeError("settings.method: expected a method that trains, got evaluation"));
  }

  async losses(batch: StepBatch, adapted: boolean): Promise<readonly number[]> {
    const { sample, timesteps, encoderHiddenStates, added } = batch;
    const base: Base = {
      ...{ sample, timesteps, encoderHiddenStates: encoderHiddenStates! },
      ...(added?.textEmbeds && { added: { textEmbeds: added.textEmbeds, timeIds: added.timeIds } }),
    };
    const prediction = await this.#model.predict({ ...base, ...(adapted && (await this.#served.feeds(batch, base))) });
    return weightedErrors(prediction.data, batch);
  }

  async release(): Promise<void> {
    await this.#served.release?.();
  }
}

/** Of each item: the mean of weights * (prediction - target)^2. */
function weightedErrors(prediction: Float32Array, { target, lossWeights }: StepBatch): number[] {
  const [batch, channels, height, width] = target.shape as [number, number, number, number];
  const plane = height * width;
  const size = channels * plane;
  return Array.from({ length: batch }, (_, item) => {
    let sum = 0;
    for (let i = 0; i < size; i++)
      sum += lossWeights.data[item * plane + (i % plane)]! * (prediction[item * size + i]! - target.data[item * size + i]!) ** 2;
    return sum / size;
  });
}
