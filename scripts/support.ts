/** `npm run support`: writes docs/support.md from the tables in the code; `-- --check` only says whether it is up to date. */
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { controlNetForms, controlNetLayouts } from "../gpu-runner/adapters/controlnet/keys.ts";
import { ipVariants } from "../gpu-runner/adapters/ip-adapter/variant.ts";
import { t2iAdapterForms, t2iAdapterLayouts } from "../gpu-runner/adapters/t2i-adapter/keys.ts";
import { providerSupport } from "../gpu-runner/graph/emitter.ts";
import { noiseFeatures, passFeatures, syntaxFeatures, taskFeatures } from "../gpu-runner/pipeline/features.ts";
import { preprocessors } from "../gpu-runner/preprocess/index.ts";
import { trainingMethodSupport, trainingOptionSupport } from "../gpu-runner/train/support.ts";
import { familyTraits, layoutTraits } from "../gpu-runner/weights/model-source.ts";
import { hyperNetworkSupport, inversionSupport, loraAlgorithmSupport, loraNamingSupport } from "../shared/adapters/support.ts";
import { samplerTraits, sigmaScheduleTraits } from "../shared/samplers.ts";
import type { Proof, Support } from "../shared/support.ts";

const marks = {
  reference: "reference case",
  "second-implementation": "second implementation",
  untested: "untested",
} as const satisfies Record<Proof, string>;

const introduction = `# What is served, and what proves it

Written by \`npm run support\` from the tables in the code; a test fails where it is out of date. What stands in no row is refused by an error that says so.

- **reference case**: the numbers of the published implementation are met (diffusers, transformers, peft, k-diffusion, OpenCV, Pillow, torch, A1111's prompt parser), by cases under \`test/goldens\` or shared ones of the same format.
- **second implementation**: the numbers of an independent implementation of the published formula are met; its script lies beside the cases.
- **untested**: tests look at its behaviour, but no other implementation's numbers were compared.

All weights of these cases are random and small. Published checkpoints were not at hand; their layouts and widths come from public configs and sources.`;

/** A heading and its rows. */
type Section = readonly [title: string, rows: Readonly<Record<string, Support>>];

const sections: readonly Section[] = [
  ["Base models: families", familyTraits],
  ["Base models: layouts", layoutTraits],
  ["Tasks", taskFeatures],
  ["Prompt syntaxes", syntaxFeatures],
  ["Passes and settings", passFeatures],
  ["Noise sources", noiseFeatures],
  ["Samplers", samplerTraits],
  ["Sigma schedules", sigmaScheduleTraits],
  ["LoRA and LyCORIS: names of keys", loraNamingSupport],
  ["LoRA and LyCORIS: algorithms", loraAlgorithmSupport],
  ["Textual inversion", inversionSupport],
  ["HyperNetwork (A1111)", hyperNetworkSupport],
  ["IP-Adapter", ipVariants],
  ["ControlNet: layouts", controlNetLayouts],
  ["ControlNet: forms", controlNetForms],
  ["T2I-Adapter: layouts", t2iAdapterLayouts],
  ["T2I-Adapter: forms", t2iAdapterForms],
  ["Control maps made of a picture", preprocessors],
  ["Trainings: methods by families", trainingMethodSupport],
  ["Trainings: options", trainingOptionSupport],
  ["Execution providers", providerSupport],
];

/** The page. */
export function supportPage(): string {
  return `${[introduction, ...sections.map(section)].join("\n\n")}\n`;
}

function section([title, rows]: Section): string {
  const lines = Object.entries(rows).map(([name, { title: what, proof }]) => `| ${name} | ${what} | ${marks[proof]} |`);
  return [`## ${title}`, "", "| name | what | proof |", "|---|---|---|", ...lines].join("\n");
}

if (import.meta.main) {
  const file = fileURLToPath(new URL("../docs/support.md", import.meta.url));
  if (!process.argv.includes("--check")) writeFileSync(file, supportPage());
  else if (readFileSync(file, "utf8") !== supportPage()) {
    console.error("docs/support.md is out of date: npm run support");
    process.exitCode = 1;
  }
}
