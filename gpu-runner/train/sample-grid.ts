/** A training's result at a glance: what the base model draws, above what is drawn with what was learned, from the same noise. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import type { TrainingRequest } from "../../shared/training.ts";
import type { TrainingContext } from "./context.ts";
import { makePicture, type OwnAdapter, ownRequest } from "./own-pictures.ts";

export const gridFile = "samples.png";
const mostPrompts = 4;

/** The request's sample prompts, else captions of the dataset, held-out ones first; of LoRAs that are one concept's each, the first is shown. */
export function gridPrompts({ sample_prompts, items, settings }: TrainingRequest): string[] {
  const shown = items.filter(({ concept }) => settings.method !== "hyper-lora" || concept === 0);
  const captions = ["test", "validation", "train"].flatMap(split =>
    shown.filter(item => item.split === split).map(({ caption }) => caption),
  );
  return [...new Set(sample_prompts.length > 0 ? sample_prompts : captions)].slice(0, mostPrompts);
}

/** Writes the grid below the folder: a column for each prompt. @returns its path below the folder */
export async function writeSampleGrid(
  request: TrainingRequest,
  context: TrainingContext,
  adapters: readonly OwnAdapter[],
  folder: string,
): Promise<string> {
  const prompts = gridPrompts(request);
  const tiles: { input: Buffer; left: number; top: number }[] = [];
  const { width, height } = ownRequest(request, context, { prompt: "", seed: request.seed });
  for (const [column, prompt] of prompts.entries())
    for (const [row, used] of [[], adapters].entries()) {
      await context.yieldTo();
      context.signal?.throwIfAborted();
      const own = ownRequest(request, context, { prompt, seed: request.seed, adapters: used.map(({ use }) => use) });
      const { bytes } = await makePicture(context, own, used);
      tiles.push({ input: Buffer.from(bytes), left: column * width, top: row * height });
    }
  const canvas = { width: prompts.length * width, height: 2 * height, channels: 3, background: "#000" } as const;
  writeFileSync(join(folder, gridFile), await sharp({ create: canvas }).composite(tiles).png().toBuffer());
  return gridFile;
}
