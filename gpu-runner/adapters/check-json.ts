/** Checks JSON that lies beside an adapter's weights. */
import type { z } from "zod";
import { ModelError } from "../weights/model-error.ts";

/** Throws ModelError for the first key that does not fit; `file` is for messages. */
export function checkJson<T extends z.ZodType>(file: string, json: unknown, schema: T): z.output<T> {
  const parsed = schema.safeParse(json, { reportInput: true });
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  const expected = issue.code === "invalid_value" ? issue.values.map(value => JSON.stringify(value)).join(" or ") : issue.message;
  throw new ModelError(file, issue.path.join(".") || "file", expected, JSON.stringify(issue.input) ?? "nothing");
}
