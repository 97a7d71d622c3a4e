/** The net between its trained tensors and the low-rank inputs of the UNet. */
import { cotangentName, gradientName } from "../../../autodiff/differentiate.ts";
import type { TensorF32, TrainableModel } from "../../../components.ts";
import type { Feeds } from "../../../session.ts";
import { addInto } from "../../flat-weights.ts";
import { normals, randomKey } from "../../random.ts";
import type { StepBatch } from "../../step.ts";
import { TrainedTensors } from "../../trained-tensors.ts";
import { type TrainingOptions, TrainingSession } from "../../training-session.ts";
import type { AdapterPart } from "../adapter-step.ts";
import { buildHyperLora, type HyperLoraShape, type Projection, projectionsOf, trainedList, wholeInputs } from "./net.ts";
import { orthonormal } from "./orthonormal.ts";
import { PictureCodes, pictureTensors } from "./pictures.ts";

/** What of a batch the net reads. */
export type NetBatch = Pick<StepBatch, "concepts" | "references">;

export class HyperLoraPart implements AdapterPart {
  readonly tensors: TrainedTensors;
  readonly features;
  readonly wrt: readonly string[];
  readonly projections: readonly Projection[];
  readonly shape: HyperLoraShape;
  /** `p.<in>` [in, K] and `q.<out>`, transposed to [out, K]. */
  readonly fixed = new Map<string, TensorF32>();
  /** Null for a net without the picture branch. */
  readonly pictures: PictureCodes | null;
  /** Pairs by input that stand for the prediction of a concept since they were trained on. */
  readonly tuned = new Map<number, Readonly<Record<string, TensorF32>>>();
  readonly #session: TrainingSession;

  constructor({ unet, description }: TrainableModel, shape: HyperLoraShape, seed: number, options: TrainingOptions) {
    const { latentChannels } = description;
    this.shape = shape;
    this.projections = projectionsOf(unet);
    this.features = { lowRank: { names: new Set(this.projections.map(({ name }) => `${name}.weight`)), perItem: true } };
    this.tensors = new TrainedTensors(trainedList(shape, this.projections, latentChannels));
    this.pictures = shape.picture && new PictureCodes(pictureTensors(latentChannels, shape.picture, shape.codeWidth), options);
    this.#start(seed);
    const graph = buildHyperLora(shape, this.projections);
    this.wrt = graph.outputs.map(({ name }) => name);
    const wrt = ["code", "roles", "blocks", ...wholeInputs, "a0"];
    this.#session = new TrainingSession({ graph, outputs: this.wrt, of: this.wrt, wrt }, options);
  }

  async forward(batch: NetBatch): Promise<Record<string, TensorF32>> {
    const { code } = await this.#codes(batch);
    const pairs = await this.#session.forward(this.#feeds(code));
    batch.concepts.forEach((concept, item) => {
      for (const [name, { data }] of Object.entries(this.tuned.get(concept) ?? {})) pairs[name]!.data.set(data, item * data.length);
    });
    return pairs;
  }

  /** The gradients of the loss, and of the pictures' codes' distance from the table's: each item's mean square by its weight. */
  async backward(batch: StepBatch, _texts: unknown, gradients: Readonly<Record<string, TensorF32>>): Promise<void> {
    const { code, table, ofPictures } = await this.#codes(batch);
    const cotangents = Object.fromEntries(this.wrt.map(name => [cotangentName(name), gradients[name]!]));
    const results = await this.#session.gradients({ ...this.#feeds(code), ...cotangents });
    for (const name of wholeInputs) addInto(this.tensors.gradient(name).data, results[gradientName(name)]!.data);
    addInto(this.tensors.gradients.subarray(this.tensors.offset(this.#firstConstant)), results[gradientName("a0")]!.data);
    for (const [name, rows] of this.#places) this.#addRows(name, rows, results[gradientName(name)]!);
    const ofCode = results[gradientName("code")]!;
    const { references } = batch;
    this.#addRows("codes", batch.concepts, references ? masked(ofCode, item => !references.used[item]) : ofCode);
    if (!references || !ofPictures) return;
    const upper = masked(ofCode, item => references.used[item]!);
    const { codeWidth } = this.shape;
    for (let i = 0; i < upper.data.length; i++) {
      const weight = references.weights[Math.floor(i / codeWidth)]!;
      upper.data[i]! += (2 * weight * (ofPictures.data[i]! - table.data[i]!)) / codeWidth;
    }
    await this.pictures!.backward(this.tensors, references.latents, upper);
  }

  async release(): Promise<void> {
    await this.#session.release();
    await this.pictures?.release();
  }

  /** What each item is predicted from: the table's code, or that of its reference picture where the batch says so. */
  async #codes({ concepts, references }: NetBatch): Promise<{ code: TensorF32; table: TensorF32; ofPictures: TensorF32 | null }> {
    const table = this.#rows("codes", concepts);
    if (!references) return { code: table, table, ofPictures: null };
    if (!this.pictures) throw new RangeError("references: expected none for a net without the picture branch, got some");
    const ofPictures = await this.pictures.codes(this.tensors, references.latents);
    const code = masked(table, item => !references.used[item]);
    addInto(code.data, masked(ofPictures, item => references.used[item]!).data);
    return { code, table, ofPictures };
  }

  get #firstConstant(): string {
    return `a0.${this.projections[0]!.name}`;
  }

  /** The rows of roles and blocks that the projections read. */
  get #places(): readonly (readonly ["roles" | "blocks", readonly number[]])[] {
    return [
      ["roles", this.projections.map(({ role }) => role)],
      ["blocks", this.projections.map(({ block }) => block)],
    ];
  }

  #feeds(code: TensorF32): Feeds {
    const { inner, rank } = this.shape;
    const whole = wholeInputs.map(name => [name, this.tensors.value(name)] as const);
    const places = this.#places.map(([name, rows]) => [name, this.#rows(name, rows)] as const);
    const count = this.projections.length;
    const from = this.tensors.offset(this.#firstConstant);
    const a0 = { data: this.tensors.values.subarray(from, from + count * inner * rank), shape: [count, inner, rank] };
    return { code, ...Object.fromEntries([...whole, ...places, ...this.fixed]), a0 };
  }

  #rows(name: string, rows: readonly number[]): TensorF32 {
    const { data, shape } = this.tensors.value(name);
    const width = shape[1]!;
    const picked = new Float32Array(rows.length * width);
    rows.forEach((row, i) => {
      picked.set(data.subarray(row * width, (row + 1) * width), i * width);
    });
    return { data: picked, shape: [rows.length, width] };
  }

  #addRows(name: string, rows: readonly number[], { data, shape }: TensorF32): void {
    const width = shape[1]!;
    const into = this.tensors.gradient(name).data;
    rows.forEach((row, i) => {
      addInto(into.subarray(row * width), data.subarray(i * width, (i + 1) * width));
    });
  }

  /** Only the second head is zero: with both, no gradient would reach the trunk. */
  #start(seed: number): void {
    const { tensors, projections, shape } = this;
    tensors.list.forEach(({ name, shape: dims }, number) => {
      if (name.startsWith("head_b.") || name.endsWith(".bias")) return;
      const { data } = tensors.value(name);
      const deviation = name.endsWith(".weight")
        ? 1 / Math.sqrt(data.length / dims[0]!)
        : name.startsWith("a0.")
          ? 1 / Math.sqrt(dims[0]!)
          : 1;
      data.set(normals(randomKey(seed, "start", number), data.length).map(value => deviation * value));
    });
    const widths = (side: "in" | "out"): number[] => [...new Set(projections.map(projection => projection[side]))];
    const draw = (name: string, width: number, part: number): void => {
      const values = normals(randomKey(seed, "start", tensors.list.length + part, width), width * shape.inner);
      this.fixed.set(name, { data: orthonormal(values, width, shape.inner), shape: [width, shape.inner] });
    };
    for (const width of widths("in")) draw(`p.${width}`, width, 0);
    for (const width of widths("out")) draw(`q.${width}`, width, 1);
  }
}

/** A copy with zeros in the rows of the items that are left out. */
function masked({ data, shape }: TensorF32, keeps: (item: number) => boolean): TensorF32 {
  const width = shape[1]!;
  return { data: data.map((value, i) => (keeps(Math.floor(i / width)) ? value : 0)), shape };
}
