import type { Draws } from "./draws.ts";
import type { Scene, SolidWords } from "./scene.ts";

const relationWords = { "left of": "to the left of", "right of": "to the right of", behind: "behind", "on top of": "on top of" };

export function withArticle(words: string): string {
  return `${"aeiou".includes(words[0] ?? "") ? "an" : "a"} ${words}`;
}

function solidCaption({ size, material, colour, shape }: SolidWords, draws: Draws): string {
  const leaveSize = draws.uniform(0, 1) < 0.15;
  return withArticle([leaveSize ? "" : size, material, colour, shape].filter(word => word).join(" "));
}

/** A scene's words; some are left out now and then, as people do. */
export function caption({ solids, relation, floor, light, style }: Scene, draws: Draws): string {
  const [first, second] = solids;
  if (!first) throw new Error("scene: expected one or two solids, got none");
  let text = solidCaption(first, draws);
  if (second && relation) {
    text += draws.uniform(0, 1) < 0.8 ? ` ${relationWords[relation]} ` : " and ";
    text += solidCaption(second, draws);
  }
  if (draws.uniform(0, 1) < 0.8) text += `, on a ${floor} floor`;
  if (light && draws.uniform(0, 1) < 0.9) text += ` ${light}`;
  if (!style) return text;
  return `${style} ${style === "a neon" ? text.replace(/^an? /, "") : text}`;
}
