/** Whether a DreamBooth can be trained and kept at all: every weight is held several times over. */
import { MAX_ADAPTER_FILE_BYTES } from "../../../shared/adapter-resource.ts";
import type { MethodSettingsOf, TrainingRequest } from "../../../shared/training.ts";
import type { TrainableModel } from "../../components.ts";
import { gigabytes, ownMemory } from "../room.ts";
import { trainedComponents } from "./dreambooth.ts";
import { componentOf } from "./lora.ts";

function trainedElements(model: TrainableModel, { text_encoder }: MethodSettingsOf<"dreambooth">): number {
  const shapes = trainedComponents(model, text_encoder).flatMap(component => [...componentOf(model, component).shapes.values()]);
  return shapes.reduce((sum, shape) => sum + shape.reduce((product, dim) => product * dim, 1), 0);
}

/** Bytes that are held: of each trained element its value, gradient and two moments, the best value so far, and an average where there is one. */
export function heldBytes(model: TrainableModel, settings: MethodSettingsOf<"dreambooth">, { optimizer, ema }: TrainingRequest): number {
  const moments = optimizer.moments === "8-bit" ? 2 : 8;
  return trainedElements(model, settings) * (4 + 4 + moments + 4 + (ema === null ? 0 : 4));
}

export interface Room {
  /** Bytes that this process may use. */
  memory: number;
  /** Most bytes of an adapter's file. */
  file: number;
}

function ownRoom(): Room {
  return { memory: ownMemory(), file: MAX_ADAPTER_FILE_BYTES };
}

/** Refuses what cannot fit before it takes the machine's memory; activations come on top of what is counted. @throws RangeError */
export function requireRoom(
  model: TrainableModel,
  settings: MethodSettingsOf<"dreambooth">,
  request: TrainingRequest,
  room = ownRoom(),
): void {
  const held = heldBytes(model, settings, request);
  if (held > room.memory)
    throw new RangeError(
      `settings.method: expected a dreambooth whose weights, gradients and moments fit into the runner's ${gigabytes(room.memory)}, got ${gigabytes(held)}: train a lora, or with optimizer.moments 8-bit and without ema`,
    );
  const difference = 4 * trainedElements(model, settings);
  if (settings.extract_rank === null && difference > room.file)
    throw new RangeError(
      `settings.extract_rank: expected a rank, since the full difference has ${gigabytes(difference)} and a file at most ${gigabytes(room.file)}`,
    );
}
