/** The world's vocabulary: what each word of a caption looks like. Colours are red, green, blue in 0 .. 1. */

export type Colour = readonly [number, number, number];

export const shapes = ["sphere", "cube", "cylinder", "cone", "ring", "pill", "pyramid", "gem"] as const;
export type Shape = (typeof shapes)[number];

export const colours = {
  red: [0.82, 0.1, 0.1],
  orange: [0.95, 0.48, 0.08],
  yellow: [0.95, 0.83, 0.12],
  green: [0.13, 0.62, 0.2],
  blue: [0.12, 0.3, 0.85],
  purple: [0.5, 0.16, 0.7],
  pink: [0.95, 0.5, 0.7],
  brown: [0.42, 0.24, 0.12],
  white: [0.93, 0.93, 0.93],
  black: [0.07, 0.07, 0.08],
  gray: [0.5, 0.5, 0.52],
  cyan: [0.15, 0.8, 0.85],
} as const satisfies Record<string, Colour>;
export type ColourName = keyof typeof colours;

/** The last one only on parts of held-out objects. */
export const materials = ["", "shiny", "metal", "striped", "checkered", "dotted"] as const;
export type Material = (typeof materials)[number];

/** Half heights, in world units. */
export const sizes = { small: 0.62, "": 0.85, large: 1.1 } as const;
export type Size = keyof typeof sizes;

export const floors = {
  white: [0.88, 0.88, 0.88],
  gray: [0.45, 0.45, 0.47],
  green: [0.25, 0.5, 0.22],
  blue: [0.18, 0.3, 0.6],
  sand: [0.8, 0.68, 0.45],
  red: [0.6, 0.15, 0.13],
  brown: [0.45, 0.29, 0.17],
} as const satisfies Record<string, Colour>;
export type Floor = keyof typeof floors;

/** Sky above and at the horizon, colour of the light, share of it that comes from everywhere. */
export const lights = {
  "": { top: [0.62, 0.78, 0.95], bottom: [0.9, 0.95, 1], colour: [1, 0.98, 0.94], ambient: 0.42 },
  "at sunset": { top: [0.35, 0.25, 0.5], bottom: [1, 0.6, 0.3], colour: [1, 0.72, 0.45], ambient: 0.34 },
  "at night": { top: [0.02, 0.03, 0.1], bottom: [0.08, 0.1, 0.24], colour: [0.5, 0.58, 0.9], ambient: 0.16 },
  "in a studio": { top: [0.8, 0.8, 0.8], bottom: [0.96, 0.96, 0.96], colour: [1, 1, 1], ambient: 0.55 },
} as const satisfies Record<string, { top: Colour; bottom: Colour; colour: Colour; ambient: number }>;
export type Light = keyof typeof lights;

export const styles = ["", "a sketch of", "a cartoon of", "a watercolor of", "a neon"] as const;
/** In no caption that the pocket model was trained on. */
export const heldOutStyles = ["a blueprint of", "a risograph of"] as const;
export type Style = (typeof styles)[number] | (typeof heldOutStyles)[number];

export type Relation = "left of" | "right of" | "behind" | "on top of";
