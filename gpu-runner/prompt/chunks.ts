/** From a prompt's text to chunks of tokens: nothing is ever cut, a longer prompt takes more chunks. */
import type { PromptSyntax } from "../../shared/picture.ts";
import type { ClipTokenizer } from "../tokenizer/clip.ts";
import { parseAttention, type WeightedPart } from "./attention.ts";

export interface Chunk {
  /** At most the tokenizer's `maxTokens`, without bos, eos and padding. */
  ids: number[];
  /** One per id. */
  weights: number[];
}

/** Words that stand for rows of new embeddings: a textual inversion's. */
export interface InversionWord {
  word: string;
  ids: readonly number[];
}

/** How far behind a comma A1111 still moves the rest of the phrase into the next chunk, in tokens. */
const commaReach = 20;

/** At least one chunk. The rows of an inversion stay in one chunk where they fit into one. */
export function promptChunks(text: string, syntax: PromptSyntax, tokenizer: ClipTokenizer, words: readonly InversionWord[] = []): Chunk[] {
  const parts: WeightedPart[] = syntax === "a1111" ? parseAttention(text) : [{ text, weight: 1 }];
  const comma = syntax === "a1111" ? tokenizer.tokens(",")[0] : undefined;
  const filling = new Filling(tokenizer.maxTokens, comma);
  for (const part of parts) {
    if (part === "BREAK") filling.next();
    else for (const group of tokenGroups(part.text, tokenizer, words)) filling.add(group, part.weight);
  }
  return filling.finish();
}

/** Tokens that stay together: each by itself, and all of an inversion. */
function tokenGroups(text: string, tokenizer: ClipTokenizer, words: readonly InversionWord[]): (readonly number[])[] {
  return splitAtWords(text, words).flatMap(part => (typeof part === "string" ? tokenizer.tokens(part).map(id => [id]) : [part.ids]));
}

/** Words are found as they are written, the longest first; the text between is tokenised by itself. */
function splitAtWords(text: string, words: readonly InversionWord[]): (string | InversionWord)[] {
  if (words.length === 0) return [text];
  const byLength = [...words].sort((a, b) => b.word.length - a.word.length);
  const pattern = new RegExp(`(${byLength.map(({ word }) => RegExp.escape(word)).join("|")})`);
  const parts = text.split(pattern).map((part, i) => (i % 2 === 1 ? byLength.find(({ word }) => word === part)! : part));
  return parts.filter(part => part !== "");
}

class Filling {
  readonly #size: number;
  readonly #comma: number | undefined;
  readonly #done: Chunk[] = [];
  #chunk: Chunk = { ids: [], weights: [] };
  /** Where in the chunk the last comma stands; -1 for none. */
  #lastComma = -1;

  constructor(size: number, comma: number | undefined) {
    this.#size = size;
    this.#comma = comma;
  }

  add(group: readonly number[], weight: number): void {
    const isComma = group.length === 1 && group[0] === this.#comma;
    if (isComma) this.#lastComma = this.#chunk.ids.length;
    else this.#moveBehindComma();
    if (this.#chunk.ids.length + group.length > this.#size && this.#chunk.ids.length > 0) this.next();
    for (const id of group) {
      if (this.#chunk.ids.length === this.#size) this.next();
      this.#chunk.ids.push(id);
      this.#chunk.weights.push(weight);
    }
  }

  /** Where a full chunk has a comma near its end, what follows the comma moves to the next one. */
  #moveBehindComma(): void {
    const { ids, weights } = this.#chunk;
    if (ids.length < this.#size || this.#lastComma < 0 || ids.length - this.#lastComma > commaReach) return;
    const moved = { ids: ids.splice(this.#lastComma + 1), weights: weights.splice(this.#lastComma + 1) };
    this.next();
    this.#chunk = moved;
  }

  next(): void {
    this.#done.push(this.#chunk);
    this.#chunk = { ids: [], weights: [] };
    this.#lastComma = -1;
  }

  finish(): Chunk[] {
    if (this.#chunk.ids.length > 0 || this.#done.length === 0) this.next();
    return this.#done;
  }
}
