/**
 * The UNet as a sampler sees it. Each item of a batch becomes one to three rows (with the prompt, with the negative prompt, without the
 * picture that is edited); all rows are predicted together as far as they allow it, and combined by guidance.
 */
import type { ControlNetArgs } from "../adapters/controlnet/controlnet.ts";
import { type ControlResiduals, scaleResiduals, sumResiduals } from "../adapters/controlnet/residuals.ts";
import type { IpAdapterUse, PredictArgs, TensorF32 } from "../components.ts";
import type { Model } from "../schedulers/sampler.ts";
import type { PictureModel } from "./context.ts";
import { guide, guideEdit } from "./guidance.ts";
import { type ImagePromptUse, type ItemAdapters, isActive, type Span, type T2iUse } from "./item-adapters.ts";
import { concat, concatItems, split } from "./tensors.ts";
import type { ItemTexts, TextStates } from "./texts.ts";

export interface ItemGuidance extends Span {
  /** 1 or less turns guidance off. */
  scale: number;
  rescale: number;
  /** Of an edit model, how closely it keeps to the picture; null for others. */
  imageScale: number | null;
}

/** What the denoiser reads of an item. */
export interface DenoisedItem {
  texts: ItemTexts;
  /** SDXL's sizes (and the refiner's score), for both prompts. */
  timeIds: { conditional: readonly number[]; unconditional: readonly number[] };
  guidance: ItemGuidance;
  adapters: ItemAdapters;
  /** Channels behind the latents: mask and masked picture of an inpainting model, the picture of an edit model. */
  extraChannels: Float32Array | null;
}

/** Where the calls of a pass stand among those of the whole run: shares count over the whole. */
export interface CallRange {
  begin: number;
  end: number;
  /** Calls of a step. */
  order: number;
  /** Steps of an earlier pass, for prompts that change. */
  earlierSteps?: number;
}

type Role = "unconditional" | "image" | "conditional";

interface Row {
  item: number;
  role: Role;
  text: TextStates;
}

/** Whether guidance asks for a negative prediction at all; a model that reads its scale needs none. */
export function isGuided(pictureModel: PictureModel, { scale, imageScale }: ItemGuidance): boolean {
  if (pictureModel.model.description.readsGuidance) return false;
  return scale > 1 && (imageScale === null || imageScale >= 1);
}

/** @param shape of one item's latents, [1, C, h, w] */
export function denoiser(pictureModel: PictureModel, items: readonly DenoisedItem[], shape: readonly number[], range: CallRange): Model {
  const calls = range.end - range.begin;
  return async (sample, timestep, call) => {
    const index = call - range.begin;
    const step = {
      step: Math.floor(index / range.order) + 1,
      steps: Math.ceil(calls / range.order),
      ...(range.earlierSteps !== undefined && { earlierSteps: range.earlierSteps }),
    };
    const rows: Row[] = [];
    for (const [i, item] of items.entries()) {
      const { conditional, unconditional } = await item.texts.at(step);
      const guided = unconditional !== null && isActive(item.guidance, index, calls);
      rows.push(...itemRows(i, item.guidance, conditional, guided ? unconditional : null));
    }
    const args = { pictureModel, items, samples: split(sample, items.length), shape, timestep, index, calls };
    const outputs = await predictRows(args, rows);
    const of = (item: number, role: Role) => outputs[rows.findIndex(row => row.item === item && row.role === role)];
    const guided = items.map(({ guidance }, i) =>
      combine(guidance, of(i, "conditional")!, of(i, "unconditional") ?? null, of(i, "image") ?? null),
    );
    const unconditional = items.map((_, i) => of(i, "image") ?? of(i, "unconditional") ?? of(i, "conditional")!);
    return {
      guided: concat(guided),
      ...(rows.some(({ role }) => role === "unconditional") && { unconditional: concat(unconditional) }),
    };
  };
}

/** An edit model's `image` row has the picture and the negative prompt, its `unconditional` row no picture either. */
function itemRows(item: number, { imageScale }: ItemGuidance, conditional: TextStates, unconditional: TextStates | null): Row[] {
  const row = (role: Role, text: TextStates): Row => ({ item, role, text });
  if (unconditional === null) return [row("conditional", conditional)];
  const negative = [row("unconditional", unconditional), ...(imageScale === null ? [] : [row("image", unconditional)])];
  return [...negative, row("conditional", conditional)];
}

function combine(
  { scale, rescale, imageScale }: ItemGuidance,
  conditional: Float32Array,
  unconditional: Float32Array | null,
  image: Float32Array | null,
): Float32Array {
  if (unconditional === null) return conditional;
  if (image !== null && imageScale !== null) return guideEdit(unconditional, image, conditional, scale, imageScale);
  return guide(unconditional, conditional, scale, rescale);
}

interface RowArgs {
  pictureModel: PictureModel;
  items: readonly DenoisedItem[];
  /** One per item. */
  samples: readonly Float32Array[];
  shape: readonly number[];
  timestep: number;
  index: number;
  calls: number;
}

/** Predictions of all rows, in their order. Rows whose texts differ in length cannot share a batch. */
async function predictRows(args: RowArgs, rows: readonly Row[]): Promise<Float32Array[]> {
  const outputs = new Array<Float32Array>(rows.length);
  for (const group of Map.groupBy(rows.keys(), i => rows[i]!.text.states.shape[1]!).values()) {
    const predicted = await predictGroup(
      args,
      group.map(i => rows[i]!),
    );
    for (const [k, i] of group.entries()) outputs[i] = predicted[k]!;
  }
  return outputs;
}

async function predictGroup(args: RowArgs, rows: readonly Row[]): Promise<Float32Array[]> {
  const { pictureModel, items, samples, shape, timestep, index, calls } = args;
  const { description } = pictureModel.model;
  const active = <T extends Span>(uses: readonly T[]) => uses.filter(use => isActive(use, index, calls));
  const adapters = rows.map(row => items[row.item]!.adapters);
  const latents = concatItems(rows.map(row => ({ data: samples[row.item]!, shape })));
  const base = {
    timesteps: rows.map(() => timestep),
    encoderHiddenStates: concatItems(rows.map(row => row.text.states)),
    ...(description.addedConditions && { added: addedConditions(items, rows) }),
  };
  const imagePrompts = imagePromptRows(rows, adapters, active);
  const control = await controlRows(args, rows, { ...base, sample: latents });
  const features = featureRows(rows, adapters, active);
  const output = await pictureModel.model.predict({
    ...base,
    sample: concatItems(rows.map(row => withExtraChannels(samples[row.item]!, shape, items[row.item]!, row.role))),
    ...(description.readsGuidance && { guidance: rows.map(row => items[row.item]!.guidance.scale) }),
    ...(adapters.some(({ loras }) => loras.length > 0) && { loras: adapters.map(({ loras }) => active(loras)) }),
    ...(adapters.some(({ hypernetworks }) => hypernetworks.length > 0) && {
      hypernetworks: adapters.map(({ hypernetworks }) => active(hypernetworks)),
    }),
    ...(imagePrompts.length > 0 && { ipAdapters: imagePrompts }),
    ...(control && { control }),
    ...(features.length > 0 && { t2iFeatures: features }),
  });
  return split(output.data, rows.length);
}

function addedConditions(items: readonly DenoisedItem[], rows: readonly Row[]): NonNullable<PredictArgs["added"]> {
  const timeIds = rows.map(({ item, role }) => items[item]!.timeIds[role === "conditional" ? "conditional" : "unconditional"]);
  return {
    textEmbeds: concatItems(rows.map(row => row.text.pooled)),
    timeIds: { data: Float32Array.from(timeIds.flat()), shape: [rows.length, timeIds[0]!.length] },
  };
}

/** An edit model's unconditional row has zeros in the picture's place. */
function withExtraChannels(
  sample: Float32Array,
  shape: readonly number[],
  { extraChannels, guidance }: DenoisedItem,
  role: Role,
): TensorF32 {
  if (extraChannels === null) return { data: sample, shape };
  const hidden = role === "unconditional" && guidance.imageScale !== null;
  const data = concat([sample, hidden ? new Float32Array(extraChannels.length) : extraChannels]);
  const [batch, , height, width] = shape as [number, number, number, number];
  return { data, shape: [batch, data.length / (height * width), height, width] };
}

type Active = <T extends Span>(uses: readonly T[]) => T[];

/** Items of a batch have the same IP-Adapters in the same order. */
function imagePromptRows(rows: readonly Row[], adapters: readonly ItemAdapters[], active: Active): IpAdapterUse[] {
  const perRow = adapters.map(({ imagePrompts }) => active(imagePrompts));
  return perRow[0]!.map(({ layers }, k) => {
    const uses = perRow.map(list => list[k]!);
    const tokens = (use: ImagePromptUse, row: Row) => (row.role === "conditional" ? use.tokens : use.unconditionalTokens);
    const mask = joinMasks(uses);
    return {
      layers,
      tokens: concatItems(uses.map((use, i) => tokens(use, rows[i]!))),
      weights: uses.map(({ weight }) => weight),
      ...(mask && { mask }),
    };
  });
}

function joinMasks(uses: readonly ImagePromptUse[]): TensorF32 | undefined {
  const masks = uses.flatMap(({ mask }) => mask ?? []);
  return masks.length > 0 ? concatItems(masks) : undefined;
}

/** Residuals of all ControlNets, summed. Items of a batch have the same nets in the same order, each over a map of its own. */
async function controlRows(
  { items, index, calls }: RowArgs,
  rows: readonly Row[],
  base: Omit<ControlNetArgs, "cond" | "control">,
): Promise<ControlResiduals | undefined> {
  const nets: ControlResiduals[] = [];
  const perRow = rows.map(({ item }) => items[item]!.adapters.controlNets.filter(use => isActive(use, index, calls)));
  for (const [k, { net, guessMode, globalPool, control }] of perRow[0]!.entries()) {
    const uses = perRow.map(list => list[k]!);
    const residuals = await net.run({ ...base, cond: concatItems(uses.map(({ map }) => map)), control });
    const weights = uses.map(({ weight }, i) => (guessMode && rows[i]!.role !== "conditional" ? 0 : weight));
    nets.push(scaleResiduals(residuals, { weights, guessMode, globalPool }));
  }
  return nets.length > 0 ? sumResiduals(nets) : undefined;
}

function featureRows(rows: readonly Row[], adapters: readonly ItemAdapters[], active: Active): TensorF32[] {
  const perRow = adapters.map(({ t2iAdapters }) => active(t2iAdapters));
  const first = perRow.flat()[0];
  if (first === undefined) return [];
  const sums = first.features.map(({ shape }) => concatItems(rows.map(() => zeros(shape))));
  for (const [i, uses] of perRow.entries()) {
    for (const use of uses) for (const [k, feature] of use.features.entries()) addToRow(sums[k]!, i, scaled(feature, use));
  }
  return sums;
}

function scaled({ data, shape }: TensorF32, { weight }: T2iUse): TensorF32 {
  return { data: data.map(value => value * weight), shape };
}

function zeros(shape: readonly number[]): TensorF32 {
  return { data: new Float32Array(shape.reduce((product, dim) => product * dim, 1)), shape };
}

function addToRow(sum: TensorF32, row: number, { data }: TensorF32): void {
  const start = row * data.length;
  for (let i = 0; i < data.length; i++) sum.data[start + i]! += data[i]!;
}
