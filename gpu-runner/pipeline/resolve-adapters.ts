/** A request's adapters, opened and fitted to a pass: its model, its size, the region that it works on. */

import { type AdapterKind, adapterKinds } from "../../shared/adapter.ts";
import type { AdapterUse, PictureRequest } from "../../shared/picture.ts";
import type { TextualInversion } from "../adapters/adapter.ts";
import type { OpenedAdapters } from "../adapters/registry.ts";
import type { LoraUse, TensorF32 } from "../components.ts";
import { GraphError } from "../graph/ir.ts";
import { preprocess } from "../preprocess/index.ts";
import { ModelError } from "../weights/model-error.ts";
import { withSafetensors } from "../weights/safetensors.ts";
import type { PictureContext } from "./context.ts";
import { readMask, readPicture, toUnitTensor } from "./input-picture.ts";
import type { ControlNetUse, ImagePromptUse, ItemAdapters, Span, T2iUse } from "./item-adapters.ts";
import type { Region } from "./mask.ts";
import type { PassPlan } from "./pass.ts";
import { cropPicture } from "./source.ts";
import { concatItems } from "./tensors.ts";

type Use<K extends AdapterKind> = Extract<AdapterUse, { kind: K }>;

/** Parts of an item's adapters while they are collected. */
export interface Collected {
  loras: (LoraUse & Span)[];
  textLoras: LoraUse[];
  hypernetworks: ItemAdapters["hypernetworks"][number][];
  imagePrompts: ImagePromptUse[];
  controlNets: ControlNetUse[];
  t2iAdapters: T2iUse[];
  words: { word: string; inversion: TextualInversion }[];
}

export function emptyCollection(): Collected {
  return { loras: [], textLoras: [], hypernetworks: [], imagePrompts: [], controlNets: [], t2iAdapters: [], words: [] };
}

interface Place {
  context: PictureContext;
  plan: PassPlan;
  region: Region | null;
  /** Of the use in the request, for errors. */
  field: string;
}

type Collector<K extends AdapterKind> = (into: Collected, use: Use<K>, opened: OpenedAdapters[K], place: Place) => void | Promise<void>;

const collectors = {
  lora: collectLora,
  "textual-inversion": (into, { token }, inversion) => void into.words.push({ word: token, inversion }),
  hypernetwork: (into, { weight, start, end }, adapter) => void into.hypernetworks.push({ adapter, weight, start, end }),
  "ip-adapter": collectImagePrompt,
  controlnet: collectControlNet,
  "t2i-adapter": async (into, use, adapter, place) => {
    const { weight, start, end } = use;
    const features = await adapter.features(await controlMap(use, place));
    requireLevelSizes(features, place);
    into.t2iAdapters.push({ features, weight, start, end });
  },
} as const satisfies { [K in AdapterKind]: Collector<K> };

/** @throws RangeError that names the use: its adapter does not fit the model, or its picture cannot be read */
export async function resolveAdapters(
  context: PictureContext,
  plan: PassPlan,
  { adapters }: PictureRequest,
  region: Region | null,
): Promise<ItemAdapters> {
  const into = emptyCollection();
  for (const [i, use] of adapters.entries()) await collect(into, use, { context, plan, region, field: `adapters[${i}]` });
  return { ...into, inversions: joinInversions(into.words, plan) };
}

async function collect<K extends AdapterKind>(into: Collected, use: Use<K>, place: Place): Promise<void> {
  const { context, plan } = place;
  const kind = adapterKinds.find((known): known is K => known === use.kind)!;
  const path = context.inputs.adapter(use.adapter);
  const opened = await atField(place.field, () => context.adapters.open(kind, use.adapter, path, plan.pictureModel.model));
  // The table's type ties each collector to its kind; a lookup by a union loses that tie.
  const collector = collectors[kind] as Collector<K>;
  await atField(place.field, async () => collector(into, use, opened, place));
}

/** What a file or a net refuses, by the request's field: which file on this machine it was is not the client's business. */
async function atField<T>(field: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof ModelError || error instanceof GraphError)) throw error;
    const place = error instanceof ModelError ? error.key : error.node;
    throw new RangeError(`${field}: ${place}: expected ${error.expected}, got ${error.got}`);
  }
}

function collectLora(into: Collected, use: Use<"lora">, adapter: OpenedAdapters["lora"]): void {
  const { weight, text_encoder_weight: textWeight, dora, start, end } = use;
  into.loras.push({ adapter, weight, dora, start, end });
  if (textWeight !== 0) into.textLoras.push({ adapter, weight: textWeight, dora });
  for (const inversion of adapter.bundled) {
    if (inversion.token !== null) into.words.push({ word: inversion.token, inversion });
  }
}

async function collectImagePrompt(
  into: Collected,
  use: Use<"ip-adapter">,
  adapter: OpenedAdapters["ip-adapter"],
  place: Place,
): Promise<void> {
  const { images, embedding, mask, shortcut, weight, start, end } = use;
  const { context, plan, field } = place;
  const face = embedding === null ? undefined : await readEmbedding(context.inputs.file(embedding), `${field}.embedding`);
  if (images.length === 0 && !face) throw new RangeError(`${field}: expected a picture or an embedding, got neither`);
  const references = [];
  for (const [i, { image, weight: share }] of images.entries()) {
    const picture = await readPicture(context.inputs.file(image), `${field}.images[${i}].image`);
    references.push({ pixelValues: adapter.preprocess(picture), ...(face && { face }), weight: share });
  }
  if (references.length === 0 && face) references.push({ pixelValues: null, face, weight: 1 });
  if (shortcut && adapter.variant !== "faceid-plus")
    throw new RangeError(`${field}.shortcut: expected false for an adapter that is no FaceID-plus, got true`);
  const { tokens, unconditional } = await adapter.tokens(references, shortcut ? 1 : null);
  const [, , height, width] = plan.shape;
  const area = mask && { data: await readMask(context.inputs.file(mask), `${field}.mask`, { width, height }), shape: [1, height, width] };
  into.imagePrompts.push({
    layers: adapter.layers,
    tokens,
    unconditionalTokens: unconditional,
    weight,
    start,
    end,
    ...(area && { mask: area }),
  });
  if (adapter.lora) into.loras.push({ adapter: adapter.lora, weight: 1, dora: null, start, end });
}

async function collectControlNet(into: Collected, use: Use<"controlnet">, net: OpenedAdapters["controlnet"], place: Place): Promise<void> {
  const { weight, start, end, guess_mode: guessMode, global_pool: globalPool, control_mode: control } = use;
  if ((net.controls === null) !== (control === null) || (control ?? 0) >= (net.controls ?? 1)) {
    const expected = net.controls === null ? "none, for a ControlNet of one control" : `0 to ${net.controls - 1}`;
    throw new RangeError(`${place.field}.control_mode: expected ${expected}, got ${control ?? "none"}`);
  }
  const map = await controlMap(use, place);
  into.controlNets.push({ net, map, weight, start, end, guessMode, globalPool: globalPool || net.globalPool, control });
}

/** The picture made a map, at the pass's size; of an inpainting's crop, the same crop. */
async function controlMap(
  { image, preprocess: kind }: Use<"controlnet" | "t2i-adapter">,
  { context, plan, region, field }: Place,
): Promise<TensorF32> {
  const { width, height } = plan;
  const whole = await readPicture(context.inputs.file(image), `${field}.image`, { width, height });
  const picture = region ? cropPicture(whole, region) : whole;
  return toUnitTensor(preprocess(kind, picture));
}

/** A base whose first blocks don't attend has features added after its downsamplers: at half the size (SDXL's way). */
function requireLevelSizes(features: readonly TensorF32[], { plan, field }: Place): void {
  const { levels } = plan.pictureModel.model.unet.config;
  const [, , height, width] = plan.shape;
  for (const [i, { shape }] of features.entries()) {
    const isHalved = i < levels.length - 1 && !levels[i]!.downAttends;
    const halvings = Math.min(i, levels.length - 1) + Number(isHalved);
    const size = (side: number) => Math.ceil(side / 2 ** halvings);
    const [expected, got] = [`${size(height)} x ${size(width)}`, `${shape[2]} x ${shape[3]}`];
    if (expected !== got)
      throw new RangeError(
        `${field}.adapter: expected features of ${expected} at level ${i} of the model, got ${got}: it is for other models`,
      );
  }
}

/** The one tensor of a face's embedding, [F], [1, F] or [n, F] of which the first counts, as [1, F]. */
function readEmbedding(path: string, field: string): Promise<TensorF32> {
  return atField(field, async () =>
    withSafetensors(path, file => {
      const [name, ...rest] = file.entries.keys();
      if (name === undefined || rest.length > 0)
        throw new RangeError(`${field}: expected one tensor, got ${rest.length + Number(name !== undefined)}`);
      const width = file.entry(name).shape.at(-1) ?? 0;
      return { data: file.readFloat32(name, 0, width), shape: [1, width] };
    }),
  );
}

/** Rows of all inversions by text encoder; a word that has none for an encoder stays text there. */
export function joinInversions(
  words: Collected["words"],
  { pictureModel }: { pictureModel: Pick<PassPlan["pictureModel"], "model"> },
): ItemAdapters["inversions"] {
  const { textEncoders } = pictureModel.model.description;
  return textEncoders.map(({ vocabularySize }, encoder) => {
    const found = words.flatMap(({ word, inversion }) => {
      const rows = inversion.vectors[encoder];
      return rows ? [{ word, rows }] : [];
    });
    let next = vocabularySize;
    const placed = found.map(({ word, rows }) => {
      const count = rows.shape[0]!;
      const ids = Array.from({ length: count }, (_, i) => next + i);
      next += count;
      return { word, ids };
    });
    return placed.length > 0 ? { words: placed, rows: concatItems(found.map(({ rows }) => rows)) } : { words: [] };
  });
}
