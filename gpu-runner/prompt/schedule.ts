/**
 * The part of A1111's prompt language that changes during a run: `[from:to:when]`, `[to:when]`, `[from::when]` and `[a|b|c]`, nested at will.
 * It is read first and gives a plain text for each step; weights and BREAK are read from that text afterwards (`attention.ts`).
 *
 * A `when` with a decimal point is a share of the run's steps, one without it a number of steps: the text changes after that step.
 * In the second pass of an upscale, shares count from 1 (1.5 is its middle) and steps go on where the first pass ended.
 * As in A1111, a `|` outside an alternation makes plain text of the whole prompt. Unlike there, shares are of the steps that are run, also
 * from image to image.
 */
export type ScheduledPrompt = readonly Node[];

type Node =
  | string
  | { kind: "scheduled"; before: ScheduledPrompt; after: ScheduledPrompt; when: string }
  | { kind: "alternate"; options: readonly ScheduledPrompt[] };

/** Where a run stands: `step` counts from 1; `earlierSteps` are those of a first pass, absent in the first. */
export interface PromptStep {
  step: number;
  steps: number;
  earlierSteps?: number;
}

/** Never throws: what is no valid construct is text. */
export function parseSchedule(text: string): ScheduledPrompt {
  const tokens = text.match(/\\.|[^\\[\]():|]+|./gs) ?? [];
  const prompt = parseRange(tokens, matchBrackets(tokens), 0, tokens.length);
  return hasStrayBar(prompt) ? [text] : prompt;
}

function hasStrayBar(prompt: ScheduledPrompt): boolean {
  return prompt.some(node => {
    if (typeof node === "string") return node === "|";
    return node.kind === "alternate" ? node.options.some(hasStrayBar) : hasStrayBar(node.before) || hasStrayBar(node.after);
  });
}

/** The text of a prompt at a step. */
export function promptAt(prompt: ScheduledPrompt, at: PromptStep): string {
  return prompt.map(node => (typeof node === "string" ? node : promptAt(choose(node, at), at))).join("");
}

/** Whether the text is the same at every step. */
export function isConstant(prompt: ScheduledPrompt): boolean {
  return prompt.every(node => typeof node === "string");
}

function choose(node: Exclude<Node, string>, at: PromptStep): ScheduledPrompt {
  if (node.kind === "alternate") return node.options[(at.step - 1) % node.options.length]!;
  return at.step <= lastStepBefore(node.when, at) ? node.before : node.after;
}

function lastStepBefore(when: string, { steps, earlierSteps }: PromptStep): number {
  const value = Number(when);
  const inSecond = earlierSteps !== undefined;
  const step = when.includes(".") ? (value - (inSecond ? 1 : 0)) * steps : value - (earlierSteps ?? 0);
  return Math.min(steps, Math.trunc(step));
}

/** Brackets nested deeper are text. */
const maxDepth = 100;

/** For each opening bracket its closing one. A stray closing bracket makes text of all brackets that are open around it. */
function matchBrackets(tokens: readonly string[]): ReadonlyMap<number, number> {
  const matches = new Map<number, number>();
  let open: number[] = [];
  for (const [i, token] of tokens.entries()) {
    if (token === "(" || token === "[") open.push(i);
    if (token !== ")" && token !== "]") continue;
    const opener = open.pop();
    if (opener === undefined || tokens[opener] !== (token === ")" ? "(" : "[")) open = [];
    else if (open.length < maxDepth) matches.set(opener, i);
  }
  return matches;
}

function parseRange(tokens: readonly string[], matches: ReadonlyMap<number, number>, from: number, to: number): ScheduledPrompt {
  const nodes: Node[] = [];
  for (let i = from; i < to; i++) {
    const close = matches.get(i);
    if (close === undefined) {
      nodes.push(tokens[i]!);
      continue;
    }
    nodes.push(...parseGroup(tokens, matches, i, close));
    i = close;
  }
  return nodes;
}

function parseGroup(tokens: readonly string[], matches: ReadonlyMap<number, number>, open: number, close: number): ScheduledPrompt {
  const asText = () => [tokens[open]!, ...parseRange(tokens, matches, open + 1, close), tokens[close]!];
  if (tokens[open] === "(") return asText();
  const separators = separatorsBetween(tokens, matches, open, close);
  const ends = [...separators, close];
  const part = (index: number) => parseRange(tokens, matches, (index === 0 ? open : separators[index - 1]!) + 1, ends[index]!);
  if (separators.length > 0 && separators.every(i => tokens[i] === "|")) {
    return [{ kind: "alternate", options: ends.map((_, index) => part(index)) }];
  }
  const when = tokens
    .slice((separators.at(-1) ?? close) + 1, close)
    .join("")
    .trim();
  const isSchedule = separators.length <= 2 && separators.every(i => tokens[i] === ":") && numberPattern.test(when);
  if (!isSchedule || separators.length === 0) return asText();
  // The last part is the number.
  const after = part(separators.length - 1);
  return [{ kind: "scheduled", before: separators.length === 2 ? part(0) : [], after, when }];
}

const numberPattern = /^[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?$/i;

/** Positions of `:` and `|` of the group itself, not of groups inside it. */
function separatorsBetween(tokens: readonly string[], matches: ReadonlyMap<number, number>, open: number, close: number): number[] {
  const found: number[] = [];
  for (let i = open + 1; i < close; i++) {
    const inner = matches.get(i);
    if (inner !== undefined) i = inner;
    else if (tokens[i] === ":" || tokens[i] === "|") found.push(i);
  }
  return found;
}
