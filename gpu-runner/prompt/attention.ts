/**
 * A1111's weights: `(text)` times 1.1, `[text]` divided by 1.1, `(text:1.3)` times 1.3, nested by multiplication; `\(` `\)` `\[` `\]` `\\` are
 * the characters themselves; BREAK ends a chunk of 75 tokens.
 */
export type WeightedPart = { text: string; weight: number } | "BREAK";

const roundFactor = 1.1;
const squareFactor = 1 / 1.1;
const tokenPattern = /\\[()[\]\\]|:\s*[+-]?[.\d]+\s*\)|[\\()[\]:]|[^\\()[\]:]+/g;
const breakPattern = /\s*\bBREAK\b\s*/;

/** Never throws; weights are finite. Neighbours of equal weight are one part. */
export function parseAttention(prompt: string): WeightedPart[] {
  const parts: WeightedPart[] = [];
  const open: Record<"round" | "square", number[]> = { round: [], square: [] };
  const multiply = (from: number, factor: number) => {
    for (const part of parts.slice(from)) if (part !== "BREAK") part.weight = finite(part.weight * factor);
  };
  for (const token of prompt.match(tokenPattern) ?? []) {
    const given = givenWeight(token);
    if (token.length === 2 && token.startsWith("\\")) parts.push({ text: token[1]!, weight: 1 });
    else if (token === "(") open.round.push(parts.length);
    else if (token === "[") open.square.push(parts.length);
    else if (given !== null && open.round.length > 0) multiply(open.round.pop()!, given);
    else if (token === ")" && open.round.length > 0) multiply(open.round.pop()!, roundFactor);
    else if (token === "]" && open.square.length > 0) multiply(open.square.pop()!, squareFactor);
    else {
      const texts = token.split(breakPattern).map(text => ({ text, weight: 1 }));
      parts.push(...texts.flatMap((part, i) => (i > 0 ? ["BREAK" as const, part] : [part])));
    }
  }
  for (const from of open.round) multiply(from, roundFactor);
  for (const from of open.square) multiply(from, squareFactor);
  return merged(parts);
}

/** The number in `:1.3)`; null where the token is no such, or its number none. */
function givenWeight(token: string): number | null {
  const written = token.match(/^:\s*([+-]?[.\d]+)\s*\)$/)?.[1];
  const weight = Number(written);
  return written === undefined || !Number.isFinite(weight) ? null : weight;
}

/** Nested weights may leave the numbers' range. */
function finite(weight: number): number {
  return Math.min(Math.max(weight, -1e6), 1e6);
}

function merged(parts: readonly WeightedPart[]): WeightedPart[] {
  const result: WeightedPart[] = [];
  for (const part of parts) {
    const last = result.at(-1);
    if (part !== "BREAK" && last !== undefined && last !== "BREAK" && last.weight === part.weight) last.text += part.text;
    else result.push(part === "BREAK" ? part : { ...part });
  }
  return result;
}
