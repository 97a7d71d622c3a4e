import type { Part } from "./scene.ts";

/** Held out of the pocket model's training: objects made of several parts, standing on the floor. */
export const objects = {
  snowman: [
    { shape: "sphere", size: 0.62, centre: [0, 0.6, 0], colour: "white", material: "" },
    { shape: "sphere", size: 0.44, centre: [0, 1.45, 0], colour: "white", material: "" },
    { shape: "cone", size: 0.3, centre: [0, 2.0, 0], colour: "orange", material: "" },
  ],
  mushroom: [
    { shape: "cylinder", size: 0.42, centre: [0, 0.42, 0], colour: "white", material: "" },
    { shape: "sphere", size: 0.66, centre: [0, 1.12, 0], colour: "red", material: "dotted" },
  ],
  tower: [
    { shape: "cube", size: 0.66, centre: [0, 0.57, 0], colour: "blue", material: "" },
    { shape: "cube", size: 0.5, centre: [0, 1.5, 0], colour: "yellow", material: "" },
    { shape: "cube", size: 0.34, centre: [0, 2.2, 0], colour: "red", material: "" },
  ],
  rocket: [
    { shape: "cylinder", size: 0.62, centre: [0, 0.9, 0], colour: "white", material: "shiny" },
    { shape: "cone", size: 0.44, centre: [0, 1.9, 0], colour: "red", material: "" },
    { shape: "pyramid", size: 0.32, centre: [-0.5, 0.32, 0], colour: "blue", material: "" },
    { shape: "pyramid", size: 0.32, centre: [0.5, 0.32, 0], colour: "blue", material: "" },
  ],
  lollipop: [
    { shape: "pill", size: 0.55, centre: [0, 0.5, 0], colour: "brown", material: "" },
    { shape: "sphere", size: 0.6, centre: [0, 1.55, 0], colour: "pink", material: "striped" },
  ],
  planet: [
    { shape: "sphere", size: 0.62, centre: [0, 0.95, 0], colour: "orange", material: "striped" },
    { shape: "ring", size: 1.12, centre: [0, 0.95, 0], colour: "purple", material: "metal" },
  ],
  "traffic light": [
    { shape: "sphere", size: 0.4, centre: [0, 0.4, 0], colour: "green", material: "shiny" },
    { shape: "sphere", size: 0.4, centre: [0, 1.18, 0], colour: "yellow", material: "shiny" },
    { shape: "sphere", size: 0.4, centre: [0, 1.96, 0], colour: "red", material: "shiny" },
  ],
  totem: [
    { shape: "cube", size: 0.55, centre: [0, 0.48, 0], colour: "brown", material: "checkered" },
    { shape: "gem", size: 0.5, centre: [0, 1.5, 0], colour: "cyan", material: "" },
    { shape: "cone", size: 0.3, centre: [0, 2.3, 0], colour: "purple", material: "" },
  ],
} as const satisfies Record<string, readonly Part[]>;
