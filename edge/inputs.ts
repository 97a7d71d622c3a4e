import { z } from "zod";
import { adapterFileSchema } from "../shared/adapter.ts";
import { contentHashSchema, sha256Schema } from "../shared/names.ts";

/** What the runner of an execution may fetch, as D1 keeps it: the grant is signed over it (edge/dispatcher/grants.ts). No other object is ever named to it. */
export const executionInputsSchema = z.strictObject({
  files: z
    .array(z.strictObject({ sha256: sha256Schema, bytes: z.int().positive(), key: z.string().min(1).describe("object key") }))
    .describe("input pictures and the files of the adapters, each once"),
  adapters: z.array(z.strictObject({ hash: contentHashSchema, files: z.array(adapterFileSchema).nonempty() })),
});
export type ExecutionInputs = z.infer<typeof executionInputsSchema>;
