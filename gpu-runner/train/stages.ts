/**
 * A training's own steps and what follows them: stages with tensors of their own, one after the other, as each concept's predicted LoRA is
 * trained on. All share one count of steps, which tells to what a checkpoint belongs.
 */
import type { TrainingRequest } from "../../shared/training.ts";
import type { BatchSettings } from "./batch.ts";
import { type CheckpointArrays, loadCheckpoint, readProgress } from "./checkpoint.ts";
import type { TrainingContext, TrainingStage } from "./context.ts";
import { type RunItems, TrainingRun } from "./training-run.ts";

/** Steps that are computed by one run. */
export interface Course {
  run: TrainingRun;
  /** Everything that a checkpoint amid it holds. */
  arrays: CheckpointArrays;
}

export interface StageSettings {
  /** The request's steps. */
  own: TrainingRun;
  /** What these move. */
  values: Float32Array;
  stages: readonly TrainingStage[];
  settings: BatchSettings;
  items: RunItems;
  openOptimiser: TrainingContext["openOptimiser"];
}

/** Those of concepts that have pictures to learn from. */
export function stagesOf(stages: readonly TrainingStage[] = [], { train }: RunItems): TrainingStage[] {
  return stages.filter(({ concept, steps }) => steps > 0 && train.some(({ item }) => item.concept === concept));
}

/** The request's steps and those of the stages. */
export function stepsInAll({ steps }: TrainingRequest, stages: readonly TrainingStage[]): number {
  return stages.reduce((sum, stage) => sum + stage.steps, steps);
}

/**
 * One course after the other, to be run by whoever takes it, from where the checkpoint at the path ends; null: from the first step.
 * @throws ModelError for a checkpoint of another training
 */
export async function* courses(all: StageSettings, checkpoint: string | null): AsyncGenerator<Course, void, undefined> {
  const { own, stages, settings, openOptimiser } = all;
  const { progress } = own;
  const load = (arrays: CheckpointArrays, path: string) => Object.assign(progress, loadCheckpoint(path, arrays, progress.request));
  const resumed = checkpoint === null ? -1 : stageAt(readProgress(checkpoint, progress.request).step, own.last, stages);
  if (resumed === -1) {
    if (checkpoint !== null) load(own.arrays, checkpoint);
    yield { run: own, arrays: own.arrays };
  }
  const before = new Map([["own", all.values]]);
  let first = own.last;
  for (const [i, stage] of stages.entries()) {
    const { concept, steps, optimizer } = stage;
    const step = await stage.open();
    const optimiser = await openOptimiser(step.tensors, optimizer);
    try {
      if (i >= resumed) {
        const run = new TrainingRun(step, optimiser, settings, itemsOf(all.items, concept), progress.request, {
          ...{ progress, first, steps, optimizer },
        });
        const arrays = new Map([...run.arrays, ...before]);
        // What was opened so far began as a net predicted that isn't loaded until now: the checkpoint has all of their values too.
        if (i === resumed && checkpoint !== null) load(arrays, checkpoint);
        else progress.best = null;
        yield { run, arrays };
      }
    } finally {
      await optimiser.release();
      await step.release();
    }
    before.set(`stage.${i}`, step.tensors.values);
    first += steps;
  }
}

/** Which stage a checkpoint was taken in after so many steps; -1: none yet. */
function stageAt(step: number, own: number, stages: readonly TrainingStage[]): number {
  let last = own;
  let at = -1;
  while (step > last) {
    at++;
    last += stages[at]?.steps ?? Number.POSITIVE_INFINITY;
  }
  return at;
}

function itemsOf({ train, validation }: RunItems, concept: number): RunItems {
  return {
    train: train.filter(({ item }) => item.concept === concept),
    validation: validation.filter(({ item }) => item.concept === concept),
    prior: [],
  };
}
