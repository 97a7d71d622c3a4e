import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { z } from "zod";

/** The command line is not understood; the message is one sentence for the user. */
export class UsageError extends Error {}

const count = z.coerce.number().int().min(1);

const optionsSchema = z.object({
  names: z.array(z.string()),
  json: z.boolean().default(false),
  help: z.boolean().default(false),
  rounds: count.optional(),
  threads: count.default(2),
  seconds: z.coerce.number().positive().default(4),
  sizes: z
    .string()
    .transform(text => text.split(","))
    .transform(texts => texts.map(Number))
    .pipe(z.array(z.int().positive().multipleOf(8)).nonempty())
    .default([256, 512]),
  unet: z.string().optional(),
  model: z.string().default(fileURLToPath(new URL("../models/pocket", import.meta.url))),
  python: z.string().min(1).optional(),
});
export type Options = z.infer<typeof optionsSchema>;

export const usage = `npm run bench -- [names] [options]

  --rounds N       measured rounds of each benchmark (each has its own default)
  --threads N      threads of the models and of their peers (2)
  --sizes A,B      unet, train, adapters, load (the first): pictures' sides in pixels (256,512)
  --unet FILE      unet: config.json of another geometry than Stable Diffusion 1.5
  --python FILE    unet, train: measure PyTorch (unet: and OpenVINO) beside it with this Python; also ATELIER_PYTHON
  --model FOLDER   pocket, cache, start: another model than models/pocket
  --seconds N      cache: length of a round (4)
  --json           one JSON document instead of tables`;

/** @throws UsageError that names the option */
export function parseOptions(args: readonly string[]): Options {
  const text = { type: "string" } as const;
  const flag = { type: "boolean" } as const;
  try {
    const { values, positionals } = parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        json: flag,
        help: flag,
        rounds: text,
        threads: text,
        seconds: text,
        sizes: text,
        unet: text,
        model: text,
        python: text,
      },
    });
    return optionsSchema.parse({ python: process.env.ATELIER_PYTHON || undefined, ...values, names: positionals });
  } catch (error) {
    if (error instanceof z.ZodError)
      throw new UsageError(error.issues.map(({ path, message }) => `--${path.join(" ")}: ${message}`).join("\n"));
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}
