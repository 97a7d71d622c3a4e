/** `npm run verify -- <folder> [--kinds a,b] [--provider cpu]`: qualifies this machine, driver and provider against reference cases. */
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { executionProviderNames } from "../graph/emitter.ts";
import { loadDiffusionModel } from "../load.ts";
import { MalformedCases } from "./cases.ts";
import { verifyKinds } from "./kinds/index.ts";
import { summary, tableHeader, tableRow } from "./report.ts";
import { runCases, verdict } from "./run.ts";

const usage = `usage: npm run verify -- <folder> [--kinds ${Object.keys(verifyKinds).join(",")}] [--provider ${executionProviderNames.join("|")}] [--cache <folder>]`;

/** 0: nothing failed, and every kind asked for was verified; 1: not so; 2: the command or the folder is malformed. */
async function main(): Promise<number> {
  const { positionals, values } = parseArgs({
    allowPositionals: true,
    options: {
      kinds: { type: "string" },
      provider: { type: "string", default: "cpu" },
      cache: { type: "string", default: join(tmpdir(), "atelier-verify") },
    },
  });
  const provider = executionProviderNames.find(name => name === values.provider);
  const [folder, ...rest] = positionals;
  if (folder === undefined || rest.length > 0 || provider === undefined) throw new TypeError(usage);
  const only = values.kinds?.split(",").map(kind => kind.trim());
  console.log(tableHeader());
  const results = await runCases({
    folder: resolve(folder),
    kinds: verifyKinds,
    ...(only && { only }),
    cacheDir: values.cache,
    load: path => loadDiffusionModel(path, { provider, cacheDir: values.cache }),
    onResult: result => console.log(tableRow(result)),
  });
  console.log(summary(results));
  const problems = verdict(results, only ?? [], verifyKinds);
  for (const problem of problems) console.error(problem);
  return problems.length > 0 ? 1 : 0;
}

try {
  process.exitCode = await main();
} catch (error) {
  if (!(error instanceof MalformedCases) && !(error instanceof TypeError) && !(error instanceof Error && "code" in error)) throw error;
  console.error(error.message);
  process.exitCode = 2;
}
