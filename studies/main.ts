/** `npm run study -- <method>`: trains on the pocket model, scores what comes out, keeps what is finished, and writes docs/study.md. */
import { join } from "node:path";
import { stateFolder } from "../scripts/local/state.ts";
import { studyConcepts } from "./concept-study.ts";
import { studyHyperLora } from "./hyper-lora-study.ts";
import { Kept } from "./kept.ts";
import { studyPairs } from "./pair-study.ts";
import { startProducts } from "./products.ts";
import { openStudy, type Study } from "./study.ts";

const studies = {
  lora: study => studyConcepts("lora", study),
  "textual-inversion": study => studyConcepts("textual-inversion", study),
  dreambooth: study => studyConcepts("dreambooth", study),
  "hyper-lora": studyHyperLora,
  "controlnet-edges": study => studyPairs("controlnet-edges", study),
  "controlnet-depth": study => studyPairs("controlnet-depth", study),
  "ip-adapter": study => studyPairs("ip-adapter", study),
} satisfies Record<string, (study: Study) => Promise<void>>;

async function main(methods: readonly string[]): Promise<void> {
  const isKnown = (method: string): method is keyof typeof studies => Object.hasOwn(studies, method);
  const wanted = methods.filter(isKnown);
  if (wanted.length === 0 || wanted.length < methods.length)
    throw new Error(`Expected studies (${Object.keys(studies).join(", ")}), got ${methods.join(" ") || "none"}.`);
  const kept = new Kept(join(stateFolder(), "studies", "kept"));
  const products = await startProducts();
  try {
    for (const method of wanted) await studies[method](openStudy(products, kept));
  } finally {
    await products.stop();
  }
}

await main(process.argv.slice(2)).catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
