/**
 * CLIP's tokenizer, with the text rules of the `tokenizers` library that diffusers uses. The JavaScript port of that library isn't used:
 * it reads a `tokenizer.json` that older model folders lack, lowers case by JavaScript's context-dependent rules (final sigma), and its
 * `\s` is JavaScript's (with U+FEFF, without U+0085).
 */
import { bytePairEncode, byteSymbols, endOfWord } from "./bpe.ts";

export interface ClipVocabulary {
  /** Token to id. */
  ids: ReadonlyMap<string, number>;
  /** "left right", in the order learnt. */
  merges: readonly string[];
  bos: SpecialToken;
  eos: SpecialToken;
  /** Model folders differ: SD 1 pads with eos, SD 2 and SDXL's second tokenizer with "!". */
  pad: SpecialToken;
  /** Stands for what the vocabulary lacks. */
  unknown: SpecialToken;
  /** Tokens of a padded list, bos and eos included. */
  maxLength: number;
}

/** A token that a prompt may spell out, pad included: "wow!!!" holds three pads where "!" is one. */
export interface SpecialToken {
  text: string;
  /** Found in the normalized text, so in any case; otherwise in the text as written. */
  normalized: boolean;
}

export interface ClipTokenizer {
  /** Ids with bos and eos, neither cut nor padded. */
  encode(text: string): number[];
  /** Exactly `maxLength` ids: cut to leave room for eos, then padded. */
  encodePadded(text: string): number[];
  /** Ids without bos and eos, neither cut nor padded. */
  tokens(text: string): number[];
  /** At most `maxTokens` ids with bos before and eos and padding behind them. @throws RangeError for more */
  chunk(ids: readonly number[]): number[];
  /** Tokens of one chunk, without bos and eos. */
  readonly maxTokens: number;
}

/** @throws Error where a special token isn't in the vocabulary */
export function clipTokenizer(vocabulary: ClipVocabulary): ClipTokenizer {
  const { ids, maxLength } = vocabulary;
  const [bos, eos, pad, unknown] = [vocabulary.bos, vocabulary.eos, vocabulary.pad, vocabulary.unknown].map(({ text }) => idOf(ids, text));
  const ranks = new Map(vocabulary.merges.map((merge, rank) => [merge, rank]));
  const [exact, normalized] = specialPatterns(vocabulary);
  const wordIds = (word: string) => bytePairEncode(word, ranks).map(symbol => ids.get(symbol) ?? unknown!);

  // Splitting at a pattern with one group leaves the matches at odd places.
  const encodeText = (text: string) =>
    text.split(exact).flatMap((part, i) => (i % 2 === 1 ? [ids.get(part)!] : encodeNormalized(normalize(part))));
  const encodeNormalized = (text: string) =>
    text.split(normalized).flatMap((part, i) => (i % 2 === 1 ? [ids.get(part)!] : splitWords(part).flatMap(wordIds)));
  const chunk = (ids: readonly number[]) => {
    const free = maxLength - 2 - ids.length;
    if (free < 0) throw new RangeError(`tokens of a chunk: expected at most ${maxLength - 2}, got ${ids.length}`);
    return [bos!, ...ids, eos!, ...new Array<number>(free).fill(pad!)];
  };
  return {
    maxTokens: maxLength - 2,
    tokens: encodeText,
    chunk,
    encode: text => [bos!, ...encodeText(text), eos!],
    encodePadded: text => chunk(encodeText(text).slice(0, maxLength - 2)),
  };
}

/** Normal form C, runs of white space to one space, lower case character by character. */
function normalize(text: string): string {
  return Array.from(text.normalize("NFC").replace(/\p{White_Space}+/gu, " "), character => character.toLowerCase()).join("");
}

/** Contractions, words, single digits, runs of anything else that is not white space. */
const piecePattern = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+/gu;
/** Words spelt like CLIP's marks, where they are no special tokens: what follows one begins a new piece. */
const markPattern = /<\|startoftext\|>|<\|endoftext\|>/u;
const markOrPiecePattern = new RegExp(`${markPattern.source}|${piecePattern.source}`, "gu");

function splitWords(text: string): string[] {
  const pieces = text.match(markOrPiecePattern) ?? [];
  return pieces.flatMap(piece => (markPattern.test(piece) ? (piece.match(piecePattern) ?? []) : [piece]));
}

/** Patterns of the specials that are sought as written, and in normalized text; a text declared both ways counts as written only. */
function specialPatterns({ bos, eos, pad, unknown }: ClipVocabulary): [exact: RegExp, normalized: RegExp] {
  const specials = [bos, eos, pad, unknown];
  const exact = new Set(specials.filter(special => !special.normalized).map(({ text }) => text));
  const normalized = new Set(specials.map(({ text }) => text).filter(text => !exact.has(text)));
  return [anyOf(exact), anyOf(normalized)];
}

/** The longest alternative wins; without any, a pattern that never matches. */
function anyOf(texts: ReadonlySet<string>): RegExp {
  const escaped = [...texts].sort((a, b) => b.length - a.length).map(text => text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"));
  return new RegExp(escaped.length > 0 ? `(${escaped.join("|")})` : "((?!))");
}

function idOf(ids: ReadonlyMap<string, number>, token: string): number {
  const id = ids.get(token);
  if (id === undefined) throw new Error(`tokenizer: expected the special token ${JSON.stringify(token)} in the vocabulary, found none`);
  return id;
}

/**
 * The vocabulary that CLIP's merges imply (OpenAI's simple_tokenizer): byte symbols, the same at a word's end, merged symbols, specials.
 * @param merges in the order learnt; fewer than all give a smaller vocabulary
 * @param pad absent: eos
 */
export function vocabularyFromMerges(merges: readonly string[], maxLength: number, pad?: string): ClipVocabulary {
  const [bos, eos] = ["<|startoftext|>", "<|endoftext|>"].map(text => ({ text, normalized: true }));
  const symbols = byteSymbols.map(({ symbol }) => symbol);
  const tokens = [
    ...symbols,
    ...symbols.map(symbol => symbol + endOfWord),
    ...merges.map(merge => merge.replace(" ", "")),
    bos!.text,
    eos!.text,
  ];
  const ids = new Map(tokens.map((token, id) => [token, id]));
  return { ids, merges, bos: bos!, eos: eos!, pad: { text: pad ?? eos!.text, normalized: false }, unknown: eos!, maxLength };
}
