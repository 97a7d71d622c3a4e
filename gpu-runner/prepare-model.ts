/** Started by prepared-models.ts: `node prepare-model.ts <model file> <target file> <options as JSON>`. */
import { closeSync, fsyncSync, openSync } from "node:fs";
import { constants, setPriority } from "node:os";
import { dirname, join } from "node:path";
import { z } from "zod";
import { executionProviderNames } from "./graph/emitter.ts";
import { preparedWeights, saveOptimised } from "./ort-session.ts";

const [file, target, options] = z.tuple([z.string(), z.string(), z.string()]).parse(process.argv.slice(2));
const { provider, threads } = z
  .object({ provider: z.enum(executionProviderNames), threads: z.int().positive().optional() })
  .parse(JSON.parse(options));

setPriority(constants.priority.PRIORITY_LOW);
await saveOptimised(file, target, { provider, ...(threads !== undefined && { threads }) });
// A name that lasts must not stand for content that does not.
for (const path of [target, join(dirname(target), preparedWeights)]) {
  const handle = openSync(path, "r");
  fsyncSync(handle);
  closeSync(handle);
}
