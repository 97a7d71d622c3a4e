/** Writes docs/study.md from what the two processes of in-process.ts left: `node studies/write-study.ts <folder of folders>`. */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Score, type TrainingScores, trainingReportSchema, trainingScoresSchema } from "../shared/training.ts";
import { conceptNames, readConcept } from "./concepts.ts";
import { conceptPlans } from "./plans.ts";
import { percent, shortfalls, thresholds } from "./verdict.ts";

interface Row {
  concept: string;
  steps: number;
  seconds: number;
  /** Mean loss of the first and of the last fifth of the steps. */
  losses: readonly [number, number];
  scores: TrainingScores;
}

function readRow(folder: string, method: string, concept: string): Row | undefined {
  const path = (file: string) => join(folder, `${method}-${concept}`, file);
  if (!existsSync(path("scores.json"))) return undefined;
  const report = trainingReportSchema.parse(JSON.parse(readFileSync(path("in-process.json"), "utf8")).report);
  const scores = trainingScoresSchema.parse(JSON.parse(readFileSync(path("scores.json"), "utf8")));
  const losses = report.losses.map(([, loss]) => loss);
  const fifth = Math.ceil(losses.length / 5);
  const mean = (part: readonly number[]) => part.reduce((a, b) => a + b, 0) / part.length;
  return {
    ...{ concept, steps: report.steps, seconds: report.seconds, scores },
    losses: [mean(losses.slice(0, fifth)), mean(losses.slice(-fifth))],
  };
}

const withInterval = ({ value, low, high }: Score) => `${percent(value)} (${percent(low)} to ${percent(high)})`;

function tableRow({ concept, steps, seconds, losses, scores }: Row): string {
  const missed = shortfalls(scores);
  const cells = [
    ...[readConcept(concept).token, concept, steps, seconds.toFixed(0), losses.map(loss => loss.toFixed(3)).join(" to ")],
    ...[withInterval(scores.gain), withInterval(scores.binding), scores.prior?.value.toFixed(3) ?? "-"],
    missed.length === 0 ? "yes" : `no: ${missed.join("; ")}`,
  ];
  return `| ${cells.join(" | ")} |`;
}

function section(folder: string, method: string): string {
  const rows = conceptNames.map(concept => readRow(folder, method, concept)).filter(row => row !== undefined);
  if (rows.length === 0) return "";
  const learned = rows.filter(({ scores }) => shortfalls(scores).length === 0).length;
  return `
## ${method}
${learned} of the ${rows.length} concepts that were trained reach every threshold.

| token | concept | steps | s | loss, first to last fifth | gain | binding | prior ratio | learned |
|---|---|---|---|---|---|---|---|---|
${rows.map(tableRow).join("\n")}
`;
}

/** Folders of controls are named `control-<control>-<concept>`. */
const controls = {
  "rate-0": "learning rate 0",
  "own-pictures": "trained on the base's own pictures",
  other: "another concept's adapter",
} as const;

function controlSection(folder: string): string {
  const rows = Object.entries(controls).flatMap(([control, words]) =>
    conceptNames.flatMap(concept => {
      const row = readRow(folder, `control-${control}`, concept);
      return row ? [`| ${words} | ${concept} | ${withInterval(row.scores.gain)} | ${shortfalls(row.scores).join("; ") || "PASSES"} |`] : [];
    }),
  );
  if (rows.length === 0) return "";
  return `
## Controls that must not pass
LoRA, the same script.

| control | scored on | gain | why it does not pass |
|---|---|---|---|
${rows.join("\n")}
`;
}

function main([folder = ""]: readonly string[]): void {
  const sections = Object.keys(conceptPlans).map(method => section(folder, method));
  const text = `# Study: does it learn?

Written by \`node studies/write-study.ts\`. The [pocket model](../models/pocket/README.md) learns concepts that no caption of its training named, from eight pictures each (\`studies/concepts\`); eight others are held out. One process trains and exports; another opens the exported file and scores it, with pictures of the world (\`studies/world\`) as what must not be forgotten. Both are \`studies/in-process.ts\`, on the engine without the API around it. Settings stand in \`studies/plans.ts\`; what the scores mean, in [training.md](training.md). These scores were taken before an inversion was compared with the base that reads its token as plain text: theirs reads the initial words in its place, so that their gains are greater than those of other methods would be.

A concept counts as learned with a gain of at least ${percent(thresholds.gain)} whose interval lies above 0, a binding above 0, and a prior ratio of at most ${thresholds.prior}. Seconds are those of the training steps, on a machine of two cores that other work used at the same time. Steps and rates were chosen by looking at these same held-out pictures (in a PyTorch twin of the recipe), and the trainer keeps the weights that validate best on them, so gains are somewhat optimistic. Concepts that are not listed were not trained; nor were DreamBooth, HyperNetworks, ControlNet and IP-Adapter where they have no section.
${sections.join("")}${controlSection(folder)}`;
  writeFileSync(new URL("../docs/study.md", import.meta.url), text);
}

main(process.argv.slice(2));
