/** New words as A1111 (and kohya) and diffusers name them: one file per word, for diffusers one per text encoder. */
import { type ResultTensor, writeTensors } from "./result.ts";

/** @param rows [n, C] by text encoder, in the encoders' order @returns paths by layout */
export function writeInversion(
  folder: string,
  name: string,
  token: string,
  rows: readonly ResultTensor[],
): { a1111: string[]; diffusers: string[] } {
  const a1111 = `a1111/${name}.safetensors`;
  const keys = rows.length === 1 ? ["emb_params"] : ["clip_l", "clip_g"];
  writeTensors(
    folder,
    a1111,
    rows.map((row, i) => ({ ...row, name: keys[i]! })),
  );
  const diffusers = rows.map((row, i) => {
    const path = `diffusers/${name}/learned_embeds${i === 0 ? "" : `_${i + 1}`}.safetensors`;
    writeTensors(folder, path, [{ ...row, name: token }]);
    return path;
  });
  return { a1111: [a1111], diffusers };
}
