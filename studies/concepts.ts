import { readdirSync, readFileSync } from "node:fs";
import { z } from "zod";

/** A picture as a dataset takes it. */
export interface StudyPicture {
  file: string;
  png: Uint8Array;
  caption: string;
  split: "train" | "test" | "prior";
  /** Index into the training's concepts. */
  concept: number;
  /** ControlNet: the control map; IP-Adapter: the reference. */
  condition?: Uint8Array;
}

/** An object or a style outside the pocket model's training: 8 pictures to learn from, 8 to test on. */
export interface ConceptSet {
  name: string;
  /** The rare word that its captions carry. */
  token: string;
  isObject: boolean;
  pictures: readonly StudyPicture[];
}

const folder = new URL("./concepts/", import.meta.url);
const lineSchema = z.object({ file_name: z.string(), text: z.string(), split: z.enum(["train", "test"]) });

export const conceptNames = readdirSync(folder).sort();

/** @throws where a caption does not carry the token as its set's captions do: "a TOKEN toy, …" or "TOKEN style of …" */
export function readConcept(name: string): ConceptSet {
  const lines = readFileSync(new URL(`${name}/metadata.jsonl`, folder), "utf8")
    .trim()
    .split("\n");
  const pictures = lines.map((line): StudyPicture => {
    const { file_name, text, split } = lineSchema.parse(JSON.parse(line));
    return { file: file_name, png: readFileSync(new URL(`${name}/${file_name}`, folder)), caption: text, split, concept: 0 };
  });
  const token = /^(?:an? )?(\w+) (?:toy|style)\b/.exec(pictures[0]?.caption ?? "")?.[1];
  if (!token || pictures.some(({ caption }) => !caption.includes(`${token} `)))
    throw new Error(`${name}: expected the same token in every caption, got ${token ?? "none"}`);
  return { name, token, isObject: name.startsWith("object-"), pictures };
}
