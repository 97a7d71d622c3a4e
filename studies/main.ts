/** `npm run study -- <method>`: trains on the pocket model, scores what comes out, keeps what is finished, and writes docs/study.md. */
import { join } from "node:path";
import { stateFolder } from "../scripts/local/state.ts";
import { studyConcepts } from "./concept-study.ts";
import { Kept } from "./kept.ts";
import { studyPairs } from "./pair-study.ts";
import { type Products, startProducts } from "./products.ts";

type Study = (products: Products, kept: Kept, say: (line: string) => void) => Promise<void>;

const studies = {
  lora: (...rest) => studyConcepts("lora", ...rest),
  "textual-inversion": (...rest) => studyConcepts("textual-inversion", ...rest),
  dreambooth: (...rest) => studyConcepts("dreambooth", ...rest),
  "controlnet-edges": (...rest) => studyPairs("controlnet-edges", ...rest),
  "controlnet-depth": (...rest) => studyPairs("controlnet-depth", ...rest),
  "ip-adapter": (...rest) => studyPairs("ip-adapter", ...rest),
} satisfies Record<string, Study>;

async function main([method = ""]: readonly string[]): Promise<void> {
  const study: Study | undefined = Object.hasOwn(studies, method) ? studies[method as keyof typeof studies] : undefined;
  if (!study) throw new Error(`Expected a study (${Object.keys(studies).join(", ")}), got ${method || "none"}.`);
  const kept = new Kept(join(stateFolder(), "studies", "kept"));
  const products = await startProducts();
  try {
    await study(products, kept, line => console.log(line));
  } finally {
    await products.stop();
  }
}

await main(process.argv.slice(2)).catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
