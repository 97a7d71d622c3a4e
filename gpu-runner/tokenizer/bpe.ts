/** Byte-level byte-pair encoding with an end-of-word mark, as CLIP's: a word's bytes become symbols, and the earliest learnt pairs merge first. */

export const endOfWord = "</w>";

/** GPT-2's `bytes_to_unicode`: a printable character for each of the 256 bytes, in the order of CLIP's vocabulary. */
export const byteSymbols: readonly { byte: number; symbol: string }[] = byteAlphabet();

function byteAlphabet() {
  const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => from + i);
  const printable = [...range(33, 126), ...range(161, 172), ...range(174, 255)];
  const others = range(0, 255).filter(byte => !printable.includes(byte));
  return [
    ...printable.map(byte => ({ byte, symbol: String.fromCodePoint(byte) })),
    ...others.map((byte, i) => ({ byte, symbol: String.fromCodePoint(256 + i) })),
  ];
}

const symbolOfByte = new Map(byteSymbols.map(({ byte, symbol }) => [byte, symbol]));
const utf8 = new TextEncoder();

/** The symbols of a word after all merges, the last with the end-of-word mark. `ranks` maps "left right" to its place among the merges. */
export function bytePairEncode(word: string, ranks: ReadonlyMap<string, number>): string[] {
  const symbols = Array.from(utf8.encode(word), byte => symbolOfByte.get(byte)!);
  symbols.push(symbols.pop()! + endOfWord);
  for (;;) {
    let best = -1;
    let bestRank = Number.POSITIVE_INFINITY;
    for (let i = 0; i + 1 < symbols.length; i++) {
      const rank = ranks.get(`${symbols[i]} ${symbols[i + 1]}`) ?? Number.POSITIVE_INFINITY;
      if (rank < bestRank) [best, bestRank] = [i, rank];
    }
    if (best < 0) return symbols;
    symbols.splice(best, 2, symbols[best]! + symbols[best + 1]!);
  }
}
