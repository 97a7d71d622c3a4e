/** Pictures of the world as datasets take them. */
import sharp from "sharp";
import type { StudyPicture } from "./concepts.ts";
import { worldPicture, worldSize } from "./world/world.ts";

const generic = { count: 8, seed: 2_000_000 } as const;

export async function toPng(plane: Uint8Array, channels: 1 | 3): Promise<Uint8Array> {
  return sharp(plane, { raw: { width: worldSize, height: worldSize, channels } })
    .png()
    .toBuffer();
}

/** What must not be forgotten. */
export function genericPictures(): Promise<StudyPicture[]> {
  return Promise.all(
    Array.from({ length: generic.count }, async (_, i): Promise<StudyPicture> => {
      const { rgb, caption } = worldPicture(generic.seed + i);
      return { file: `generic-${i}.png`, png: await toPng(rgb, 3), caption, split: "prior", concept: 0 };
    }),
  );
}
