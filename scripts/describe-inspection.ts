import type { ModelInspection } from "../gpu-runner/inspect.ts";

/** Keys that are listed by name before the rest is only counted. */
const LISTED = 5;

/** What `npm run model -- inspect` prints: what the model is, its parts, and what became of every key. */
export function describeInspection(path: string, { description, parts, parameters, skipped, unused, sound }: ModelInspection): string {
  const { hash, family, tasks, predictionType, defaultWidth, defaultHeight, crossAttentionDim } = description;
  const lines = [
    path,
    `${hash}`,
    `family ${family}, ${predictionType}, ${defaultWidth}x${defaultHeight}, text width ${crossAttentionDim}; draws ${tasks.join(", ")}`,
    `${short(parameters)} parameters in all`,
    "",
    ...parts.map(({ component, parameters: count, precisions, keysUsed }) => {
      const stored = Object.entries(precisions).map(([dtype, elements]) => (elements === count ? dtype : `${dtype} ${short(elements)}`));
      return `${component.padEnd(14)} ${short(count).padStart(8)}  ${stored.join(", ").padEnd(8)}  ${keysUsed} keys used`;
    }),
    ...parts.flatMap(({ component, problems }) => problems.map(problem => `${component}: ${problem}`)),
    ...Object.entries(skipped).map(([why, keys]) => `skipped, ${why}: ${some(keys)}`),
    ...(unused.length > 0 ? [`unused, which nobody knows: ${some(unused)}`] : []),
    "",
    sound ? "It can be loaded." : "It cannot be loaded.",
  ];
  return lines.join("\n");
}

function some(keys: readonly string[]): string {
  const more = keys.length > LISTED ? ` and ${keys.length - LISTED} more` : "";
  return `${keys.slice(0, LISTED).join(", ")}${more}`;
}

function short(count: number): string {
  return count < 1e6 ? `${(count / 1e3).toFixed(1)} k` : `${(count / 1e6).toFixed(1)} M`;
}
