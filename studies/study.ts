/** What every study works with: two products, what is finished, and where its results go. */
import { mkdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import sharp from "sharp";
import type { Kept } from "./kept.ts";
import { writePage } from "./page.ts";
import type { Products } from "./products.ts";
import type { StudyResult } from "./results.ts";

export interface Study {
  products: Products;
  kept: Kept;
  say(line: string): void;
  /** Writes a study's results so far, and the page anew. */
  finished(name: string, result: StudyResult): void;
  /** Keeps a picture for the page. */
  picture(name: string, png: Uint8Array): Promise<void>;
}

export const resultsFolder = fileURLToPath(new URL("../docs/study", import.meta.url));

export function openStudy(products: Products, kept: Kept): Study {
  mkdirSync(resultsFolder, { recursive: true });
  return {
    products,
    kept,
    say: line => console.log(line),
    finished(name, result) {
      writeFileSync(`${resultsFolder}/${name}.jsonl`, `${JSON.stringify(result)}\n`);
      writePage(resultsFolder);
    },
    async picture(name, png) {
      writeFileSync(`${resultsFolder}/${name}.webp`, await sharp(png).webp({ quality: 80 }).toBuffer());
    },
  };
}
