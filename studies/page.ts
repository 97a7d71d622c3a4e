/** docs/study.md and its curves, written from the results in docs/study alone. */
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Score, TrainingScores } from "../shared/training.ts";
import { curve } from "./curve.ts";
import {
  type ConceptResult,
  type Control,
  type Cost,
  controls,
  type MatrixResult,
  type PairResult,
  type StudyResult,
  studyResultSchema,
} from "./results.ts";
import { leastOwnBest, ownBest, percent, shortfalls, thresholds } from "./verdict.ts";

const order = ["lora", "textual-inversion", "dreambooth", "hyper-lora", "controlnet-edges", "controlnet-depth", "ip-adapter"];

export function writePage(folder: string): void {
  const names = readdirSync(folder).flatMap(file => (file.endsWith(".jsonl") ? [file.slice(0, -".jsonl".length)] : []));
  const results = order
    .filter(name => names.includes(name))
    .map(name => [name, studyResultSchema.parse(JSON.parse(readFileSync(join(folder, `${name}.jsonl`), "utf8")))] as const);
  const sections = results.map(([name, result]) => section(folder, name, result));
  const missing = order.filter(name => !names.includes(name));
  writeFileSync(join(folder, "..", "study.md"), `${introduction(missing)}${sections.join("")}`);
  writeCosts(join(folder, "..", "training.md"), results);
}

/** What methods cost on the pocket model, between two marks of docs/training.md. */
function writeCosts(path: string, results: readonly (readonly [string, StudyResult])[]): void {
  const rows = results.map(([name, result]) => {
    const costs = result.kind === "concepts" ? result.rows.map(({ cost }) => cost) : [result.cost];
    const range = (of: (cost: Cost) => number, digits: number): string => {
      const values = costs.map(of);
      const [least, most] = [Math.min(...values).toFixed(digits), Math.max(...values).toFixed(digits)];
      return least === most ? least : `${least} to ${most}`;
    };
    return [
      ...[
        name,
        range(({ parameters }) => parameters / 1e6, 2),
        range(({ steps }) => steps, 0),
        range(({ wall_seconds }) => wall_seconds, 0),
      ],
      ...[
        range(({ steps, seconds }) => seconds / steps, 2),
        range(({ peak_memory_bytes }) => peak_memory_bytes / 1e9, 1),
        outcome(name, result),
      ],
    ];
  });
  const head = ["study", "trained, M", "steps", "s in all", "s a step", "memory, GB", "result"];
  const marks = [/(<!-- costs, written by npm run study -->\n)[\s\S]*?(<!-- end of costs -->)/, `$1${table(head, rows)}\n$2`] as const;
  writeFileSync(path, readFileSync(path, "utf8").replace(...marks));
}

function outcome(name: string, result: StudyResult): string {
  if (result.kind === "matrix") return `own weights best for ${ownBest(result.gains)} of ${result.concepts.length}`;
  if (result.kind === "pairs") return `right against shuffled ${withInterval(result.advantage)}`;
  const gains = result.rows.map(({ scores }) => scores.gain.value);
  const learned = result.rows.filter(({ scores }) => missedBy(name, scores).length === 0).length;
  return `${learned} of ${gains.length} learned, gain ${percent(Math.min(...gains))} to ${percent(Math.max(...gains))}`;
}

function introduction(missing: readonly string[]): string {
  return `# Study: does it learn?

Written by \`npm run study -- <method>\` from the results in [study/](study). The [pocket model](../models/pocket/README.md) learns concepts that no caption of its training named (\`studies/concepts\`), and conditions from pairs of its world (\`studies/world\`). One product, edge and runner, trains over HTTP; what it exports is downloaded and uploaded to another product with processes and storage of its own, which scores it by an [evaluation](training.md#scores): nothing but the file is known there. What is scored is never sent to the product that trains: of eight pictures of a concept seven are learned from and one chooses the weights.

A concept counts as learned with a gain of at least ${percent(thresholds.gain)} whose interval lies above 0, a binding above 0, and a prior ratio of at most ${thresholds.prior} on eight pictures of the world; after a textual inversion, pictures without the token must be the same to the bit. Eight held-out pictures at eight timesteps and four noises, paired; 95 % intervals, bootstrapped. Seconds are from request to result, with loading, cached latents and prior pictures, beside those of the steps alone; the machine has two cores that other work used at the same time. Settings stand in \`studies/plans.ts\`. Steps and rates were chosen in earlier rounds with an eye on the same held-out pictures, so that gains are somewhat optimistic. The threshold of the gain began at 3 %, which a LoRA of one object just reached on another's pictures; it was raised until it did not. That is one pair: tried on other pictures of the same object, another object's LoRA gained nearly as much as its own at these few steps, so most of such a gain is what the objects have in common. Only hyper-lora's table compares every concept's weights with every other's.
${missing.length > 0 ? `\nNot run to a result: ${missing.join(", ")}.\n` : ""}`;
}

function section(folder: string, name: string, result: StudyResult): string {
  const text = {
    concepts: () => conceptSection(folder, name, result as ConceptResult),
    matrix: () => matrixSection(folder, name, result as MatrixResult),
    pairs: () => pairSection(folder, name, result as PairResult),
  };
  return `\n## ${name}\n${text[result.kind]()}`;
}

const missedBy = (name: string, scores: TrainingScores) => shortfalls(scores, name === "textual-inversion");
const withInterval = ({ value, low, high }: Score) => `${percent(value)} (${percent(low)} to ${percent(high)})`;
const table = (head: readonly string[], rows: readonly (readonly (string | number)[])[]) =>
  [head, head.map(() => "---"), ...rows].map(cells => `| ${cells.join(" | ")} |`).join("\n");

function conceptSection(folder: string, name: string, { rows, controls: fails }: ConceptResult): string {
  const learned = rows.filter(({ scores }) => missedBy(name, scores).length === 0).length;
  drawCurves(
    folder,
    name,
    rows.map(({ concept, cost }) => ({ label: concept, points: cost.losses })),
  );
  const scored = rows.map(({ token, concept, cost, scores }) => [
    ...[token, concept, cost.steps, `${cost.wall_seconds.toFixed(0)} (${cost.seconds.toFixed(0)})`],
    ...[withInterval(scores.gain), withInterval(scores.binding), scores.prior?.value.toFixed(3) ?? "-", scores.drift.value.toFixed(3)],
    missedBy(name, scores).length === 0 ? "yes" : `no: ${missedBy(name, scores).join("; ")}`,
  ]);
  const refused = fails.map(({ control, concept, scores }) => [
    ...[controls[control], concept, withInterval(scores.gain), withInterval(scores.binding), scores.prior?.value.toFixed(3) ?? "-"],
    missedBy(name, scores).length === 0 ? "**passes, which it must not**" : missedBy(name, scores).join("; "),
  ]);
  const notRun = (Object.keys(controls) as Control[]).filter(control => !fails.some(row => row.control === control));
  const pictures = rows
    .filter(({ concept }) => existsSync(join(folder, `${name}-${concept}.webp`)))
    .map(({ concept }) => `![${concept}](study/${name}-${concept}.webp)`);
  return `${learned} of the ${rows.length} concepts that were trained reach every threshold.

${table(["token", "concept", "steps", "s (steps alone)", "gain", "binding", "prior", "drift", "learned"], scored)}
${refused.length === 0 ? "" : `\nControls that must not pass, in the same script:\n\n${table(["control", "scored on", "gain", "binding", "prior", "why it does not pass"], refused)}\n`}
${notRun.length > 0 ? `Controls not run: ${notRun.map(control => controls[control]).join(", ")}.\n\n` : ""}Held-out captions drawn by the base (above) and with the exported file (below), from the same noise:

${pictures.join(" ")}

![loss](study/${name}.svg)
`;
}

function matrixSection(folder: string, name: string, { cost, concepts, tokens, gains, control }: MatrixResult): string {
  drawCurves(folder, name, [{ label: name, points: cost.losses }]);
  const own = ownBest(gains);
  const rows = gains.map((row, i) => [tokens[i]!, ...row.map((gain, j) => (i === j ? `**${percent(gain)}**` : percent(gain)))]);
  const pictures = concepts.filter(concept => existsSync(join(folder, `${name}-${concept}.webp`)));
  return `One training of all objects; a net predicts the LoRA of each. For ${own} of ${concepts.length} objects the weights of its own beat every other object's (expected: at least ${leastOwnBest}). ${costWords(cost)}

Gain of the weights of each token (rows) on held-out pictures of each object (columns), two of each:

${table(["", ...concepts.map(concept => concept.replace("object-", ""))], rows)}
${control ? `\nControl, learning rate 0: own weights are best for ${ownBest(control.gains)} of ${concepts.length}.\n` : ""}
${pictures.map(concept => `![${concept}](study/${name}-${concept}.webp)`).join(" ")}

![loss](study/${name}.svg)
`;
}

function pairSection(folder: string, name: string, { cost, right, shuffled, advantage, drawn, control }: PairResult): string {
  drawCurves(folder, name, [{ label: name, points: cost.losses }]);
  const isLearned = advantage.low > 0 && right.low > 0;
  const rows = [
    ["gain over the base, right conditions", withInterval(right)],
    ["gain over the base, shuffled conditions", withInterval(shuffled)],
    ["right against shuffled", withInterval(advantage)],
    [
      "drawn pictures' mean squared difference to the true ones: base, right, shuffled",
      [drawn.base, drawn.right, drawn.shuffled].map(value => value.toFixed(4)).join(", "),
    ],
    [
      "shuffled less right",
      `${drawn.difference.value.toFixed(4)} (${drawn.difference.low.toFixed(4)} to ${drawn.difference.high.toFixed(4)})`,
    ],
    ...(control
      ? [["control, learning rate 0: right against shuffled", withInterval(control.advantage)]]
      : [["control, learning rate 0", "not run"]]),
  ];
  return `${isLearned ? "Learned" : "Not learned"}: held-out pairs, each with its own condition and with another's, at the same noises. ${costWords(cost)}

${table(["", ""], rows)}

From above: condition, base, with the right condition, with a shuffled one, the true picture.

![${name}](study/${name}.webp)

![loss](study/${name}.svg)
`;
}

function costWords({ steps, ended_by, seconds, wall_seconds, parameters, peak_memory_bytes }: Cost): string {
  return `${steps} steps (ended by ${ended_by}), ${(parameters / 1e6).toFixed(2)} M trained parameters, ${wall_seconds.toFixed(0)} s, of which the steps took ${seconds.toFixed(0)}; ${(peak_memory_bytes / 1e9).toFixed(1)} GB.`;
}

function drawCurves(folder: string, name: string, lines: Parameters<typeof curve>[0]): void {
  writeFileSync(join(folder, `${name}.svg`), curve(lines));
}
