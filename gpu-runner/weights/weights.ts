/** Where a model takes its weights from: by name and shape, so that a missing, unused or misshapen key is an error that names it. */
import type { StoredTensor } from "../graph/ir.ts";
import type { ComponentName } from "./key-layouts.ts";
import { ModelError } from "./model-error.ts";
import type { ModelSource } from "./model-source.ts";
import { floatDtypes, withSafetensors } from "./safetensors.ts";
import type { SortedKeys, SourceTensor } from "./sorted-keys.ts";

/** What a model under construction sees. */
export interface WeightSource {
  take(name: string, shape: readonly number[]): StoredTensor;
}

/**
 * The weights of one part before they are placed: it notes what is taken and what does not fit, and hands out tensors that lie
 * nowhere, so that a graph over it can be built but not run.
 */
export class CheckedWeights implements WeightSource {
  readonly taken = new Map<string, SourceTensor>();
  /** Shapes of what was taken, by the graphs' names. */
  readonly shapes = new Map<string, readonly number[]>();
  readonly problems: ModelError[] = [];
  readonly #tensors: ReadonlyMap<string, SourceTensor>;
  readonly #file: string;

  /** `file` is named for what is missing. */
  constructor(tensors: ReadonlyMap<string, SourceTensor>, file: string) {
    this.#tensors = tensors;
    this.#file = file;
  }

  take(name: string, shape: readonly number[]): StoredTensor {
    const tensor = this.#tensors.get(name);
    if (!tensor) this.problems.push(new ModelError(this.#file, name, `a tensor [${shape}]`, "none"));
    else this.#check(tensor, shape);
    this.shapes.set(name, shape);
    return { key: name, file: this.#file, offset: 0, byteLength: 4 * shape.reduce((a, b) => a * b, 1), shape };
  }

  #check(tensor: SourceTensor, shape: readonly number[]): void {
    const { file, entry } = tensor;
    this.taken.set(tensor.name, tensor);
    if (!floatDtypes.includes(entry.dtype)) this.problems.push(new ModelError(file, entry.name, floatDtypes.join(" or "), entry.dtype));
    else if (!sameElements(tensor.shape, shape))
      this.problems.push(new ModelError(file, entry.name, `shape [${shape}]`, `[${tensor.shape}]`));
  }
}

/** The weights of one part once they are placed; what is asked for has been checked. */
export class PlacedWeights implements WeightSource {
  readonly #tensors: ReadonlyMap<string, StoredTensor>;

  constructor(tensors: ReadonlyMap<string, StoredTensor>) {
    this.#tensors = tensors;
  }

  /** The files that they lie in. */
  files(): string[] {
    return [...new Set([...this.#tensors.values()].map(({ file }) => file))];
  }

  take(name: string, shape: readonly number[]): StoredTensor {
    const tensor = this.#tensors.get(name);
    if (!tensor) throw new Error(`${name}: expected a weight that was placed, got none`);
    return { ...tensor, shape };
  }
}

/** The weights of a file of fp32 whose keys are the graph's own names, mapped where they lie. */
export function weightsOfFile(path: string): PlacedWeights {
  const entries = withSafetensors(path, source => [...source.entries.values()]);
  return new PlacedWeights(
    new Map(entries.map(({ name, offset, byteLength, shape }) => [name, { key: name, file: path, offset, byteLength, shape }])),
  );
}

/** A linear layer may be stored as the 1x1 convolution that does the same, and the other way round. */
function sameElements(a: readonly number[], b: readonly number[]): boolean {
  return String(withoutOnes(a)) === String(withoutOnes(b));
}

function withoutOnes(shape: readonly number[]): readonly number[] {
  return shape.length === 4 && shape[2] === 1 && shape[3] === 1 ? shape.slice(0, 2) : shape;
}

/** Keys that nobody took: unknown ones, and tensors that the graphs do not compute with. Buffers of whole numbers do not count. */
export function unusedKeys(
  sorted: SortedKeys,
  taken: ReadonlyMap<ComponentName, ReadonlyMap<string, SourceTensor>>,
): { file: string; key: string; shape: readonly number[] }[] {
  const left = [...sorted.tensors].flatMap(([component, tensors]) =>
    [...tensors.values()].filter(({ name, entry }) => !taken.get(component)?.has(name) && floatDtypes.includes(entry.dtype)),
  );
  return [...sorted.unknown, ...left.map(({ file, entry, shape }) => ({ file, key: entry.name, shape }))];
}

/** The file that is named for a part's missing tensors. */
export function fileOf(source: ModelSource, tensors: ReadonlyMap<string, SourceTensor> | undefined): string {
  return tensors?.values().next().value?.file ?? source.path;
}
