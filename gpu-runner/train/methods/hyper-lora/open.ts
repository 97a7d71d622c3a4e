/** A training of a net that predicts LoRAs: a new one, or one that goes on from an earlier training's file. */
import { z } from "zod";
import { parseJson } from "../../../../shared/json.ts";
import type { TensorF32, TrainableModel } from "../../../components.ts";
import type { OpenedStep, TrainingStage } from "../../context.ts";
import type { PreparedItem } from "../../dataset.ts";
import { type HyperLoraStep, openHyperLoraStep } from "../hyper-lora.ts";
import type { MethodArgs, StartFile } from "../index.ts";
import { shapeOfNet, standardShape } from "./net.ts";

/** In the header of a net's file: the tokens of its table's concepts, as JSON. */
export const conceptsKey = "atelier.concepts";

/** Rule 16: half of the items are predicted from pictures. */
const referenceShare = 0.5;

export async function openHyperLora({ model, settings, request, start, options }: MethodArgs<"hyper-lora">): Promise<OpenedStep> {
  const { concepts, seed, optimizer } = request;
  const { rank, fine_tune_steps: steps, fine_tune_learning_rate: learning_rate } = settings;
  const shape = start ? { ...shapeOfNet(start.tensors), concepts: concepts.length } : standardShape(concepts.length, rank);
  if (shape.rank !== rank) throw new RangeError(`settings.rank: expected ${shape.rank}, which the net predicts, got ${rank}`);
  const rows = start && rowsOf(concepts, start);
  const step = openHyperLoraStep(model, shape, seed, options);
  if (start && rows) step.startFrom(start.tensors, rows);
  const stage = (_: unknown, concept: number): TrainingStage => ({
    ...{ concept, steps },
    optimizer: { ...optimizer, learning_rate, schedule: "constant", warmup_steps: 0 },
    open: () => step.tune(concept),
  });
  return {
    step,
    ...(shape.picture && { referenceShare }),
    constants: step.constants,
    predicted: () => step.predicted(),
    ...(rows && { begin: items => beginConcepts(step, rows, items, model.description) }),
    stages: steps > 0 ? concepts.map(stage) : [],
  };
}

/** The row of the file's table for each concept, by its token; undefined: one that the net was not trained on. */
function rowsOf(concepts: MethodArgs<"hyper-lora">["request"]["concepts"], { metadata }: StartFile): (number | undefined)[] {
  const known = z.array(z.string()).safeParse(parseJson(metadata[conceptsKey] ?? ""));
  const tokens = known.success ? known.data : [];
  return concepts.map(({ token }) => (tokens.includes(token) ? tokens.indexOf(token) : undefined));
}

/** What is new begins with the mean of its pictures' codes. */
async function beginConcepts(
  step: HyperLoraStep,
  rows: readonly (number | undefined)[],
  items: readonly PreparedItem[],
  { latentChannels, vaeScaleFactor }: TrainableModel["description"],
): Promise<void> {
  for (const [concept, row] of rows.entries()) {
    if (row !== undefined) continue;
    const own = items.filter(({ item }) => item.concept === concept);
    const latentsOf = ({ latents, size }: PreparedItem): TensorF32 => {
      return { data: latents[0]!, shape: [latentChannels, size.height / vaeScaleFactor, size.width / vaeScaleFactor] };
    };
    await step.setCode(concept, own.map(latentsOf));
  }
}
