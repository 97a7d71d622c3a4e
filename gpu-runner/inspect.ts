/** What a published model holds, key by key, against what its graphs compute with: loading refuses by it, an operator reads it. */
import { buildModelGraphs } from "./models/model-graphs.ts";
import { describeSource, type ModelDescription } from "./weights/describe.ts";
import { type ComponentName, componentNames } from "./weights/key-layouts.ts";
import { ModelError } from "./weights/model-error.ts";
import { hashModel, type ModelSource, openModel } from "./weights/model-source.ts";
import { elementsOf, type SortedKeys, sortKeys } from "./weights/sorted-keys.ts";
import { CheckedWeights, fileOf, unusedKeys } from "./weights/weights.ts";

/** A model's headers against its graphs; no tensor was read. */
export interface CheckedModel {
  parts: ReadonlyMap<ComponentName, CheckedWeights>;
  sorted: SortedKeys;
  /** Keys that nothing computes with and nobody knows. */
  unused: readonly { file: string; key: string; shape: readonly number[] }[];
}

/** Builds every graph over the files' headers. Throws ModelError for a malformed file; what does not fit is told in the result. */
export function checkModel(source: ModelSource): CheckedModel {
  const sorted = sortKeys(source);
  const names = componentNames.filter(
    name => name === "unet" || name === "vae" || source.textEncoders.some(part => part.component === name),
  );
  const parts = new Map(
    names.map(name => {
      const tensors = sorted.tensors.get(name) ?? new Map();
      return [name, new CheckedWeights(tensors, fileOf(source, tensors))];
    }),
  );
  buildModelGraphs(source, name => parts.get(name)!);
  const taken = new Map([...parts].map(([name, { taken }]) => [name, taken]));
  return { parts, sorted, unused: unusedKeys(sorted, taken) };
}

/** Throws the first thing that keeps a model from being loaded: a missing or misshapen tensor, or a key that nobody knows. */
export function requireSound({ parts, unused }: CheckedModel): void {
  for (const { problems } of parts.values()) if (problems[0]) throw problems[0];
  const [first] = unused;
  if (!first) return;
  const more = unused.length > 1 ? `${unused.length} unused keys, the first [${first.shape}]` : "an unused key";
  throw new ModelError(first.file, first.key, "every key to be used", more);
}

export interface PartInspection {
  component: ComponentName;
  parameters: number;
  /** Parameters by the dtype that they are stored in. */
  precisions: Readonly<Record<string, number>>;
  keysUsed: number;
  /** What keeps the part from being loaded: tensors that are missing or misshapen. */
  problems: readonly string[];
}

export interface ModelInspection {
  description: ModelDescription;
  parts: readonly PartInspection[];
  parameters: number;
  /** Keys that are passed over, by the reason. */
  skipped: Readonly<Record<string, readonly string[]>>;
  /** Keys that nobody knows: a model that has any is refused. */
  unused: readonly string[];
  /** Whether it can be loaded. */
  sound: boolean;
}

/** Opens, hashes and checks a folder or file. Throws ModelError where configs or headers cannot be read. */
export async function inspectModel(path: string): Promise<ModelInspection> {
  const source = openModel(path);
  return inspectChecked(source, checkModel(source));
}

/** The same of a model that has been opened and checked. */
export async function inspectChecked(source: ModelSource, checked: CheckedModel): Promise<ModelInspection> {
  const parts = [...checked.parts].map(([component, weights]) => inspectPart(component, weights));
  const skipped = Object.groupBy(checked.sorted.skipped, ({ why }) => why);
  return {
    description: describeSource(source, (await hashModel(source)).hash),
    parts,
    parameters: parts.reduce((sum, part) => sum + part.parameters, 0),
    skipped: Object.fromEntries(Object.entries(skipped).map(([why, rows]) => [why, rows!.map(({ key }) => key)])),
    unused: checked.unused.map(({ key }) => key),
    sound: checked.unused.length === 0 && parts.every(({ problems }) => problems.length === 0),
  };
}

function inspectPart(component: ComponentName, { taken, problems }: CheckedWeights): PartInspection {
  const precisions: Record<string, number> = {};
  for (const tensor of taken.values()) precisions[tensor.entry.dtype] = (precisions[tensor.entry.dtype] ?? 0) + elementsOf(tensor);
  return {
    component,
    parameters: Object.values(precisions).reduce((sum, count) => sum + count, 0),
    precisions,
    // Pieces of one key count once.
    keysUsed: new Set([...taken.values()].map(({ file, entry }) => `${file}\n${entry.name}`)).size,
    problems: problems.map(({ key, expected, got }) => `${key}: expected ${expected}, got ${got}`),
  };
}
