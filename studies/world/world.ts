/**
 * A small procedural world of captioned pictures with depth and edges: the pocket model was trained on a Python original of it. Here
 * it makes pairs for ControlNet and IP-Adapter trainings and generic pictures for scores.
 */
import { caption } from "./caption.ts";
import { seededDraws } from "./draws.ts";
import { objects } from "./objects.ts";
import { type Picture, render } from "./render.ts";
import { type Scene, sampleScene } from "./scene.ts";
import { stage } from "./stage.ts";

export interface CaptionedPicture extends Picture {
  caption: string;
  scene: Scene;
}

/** The size that the pocket model was trained at, px. */
export const worldSize = 128;

export interface WorldOptions {
  /** Of two solids; absent: half of the time. */
  two?: boolean;
  size?: number;
  /** Seed of another view of the same scene. */
  staging?: number;
}

/** The same seed gives the same bytes. */
export function worldPicture(seed: number, { two, size = worldSize, staging }: WorldOptions = {}): CaptionedPicture {
  const draws = seededDraws(seed);
  const scene = sampleScene(draws, two);
  const text = caption(scene, draws);
  return { ...render(scene, stage(scene, staging === undefined ? draws : seededDraws(staging)), size), caption: text, scene };
}

/** A held-out object on a random floor in a random light. @param token the rare word that stands for it */
export function objectPicture(name: keyof typeof objects, token: string, seed: number): CaptionedPicture {
  const draws = seededDraws(seed);
  const scene: Scene = { ...sampleScene(draws, false), parts: objects[name], style: "" };
  const text = `a ${token} toy, on a ${scene.floor} floor${scene.light ? ` ${scene.light}` : ""}`;
  return { ...render(scene, stage(scene, draws), worldSize), caption: text, scene };
}
