import { z } from "zod";
import type { FieldError } from "../shared/errors.ts";

/** Expectations begin with this word, as the messages of our own schemas do. */
const EXPECTED = "expected ";

/** What people call a JSON type. */
const typeNames: Readonly<Record<string, string>> = {
  string: "text",
  number: "a number",
  int: "a whole number",
  boolean: "true or false",
  array: "a list",
  object: "an object",
  null: "null",
};

/** What is counted in a value that is too small or too large. */
const units: Readonly<Record<string, string>> = { string: "character", array: "item" };

/** What a schema expected, in plain words; undefined leaves zod's own. */
function expectation(issue: z.core.$ZodRawIssue): string | undefined {
  switch (issue.code) {
    case "invalid_type":
      return typeNames[issue.expected];
    case "invalid_value":
      return issue.values.length === 1 ? String(issue.values[0]) : `one of ${issue.values.join(", ")}`;
    case "too_small":
      return amount(issue.origin, issue.inclusive === false ? "more than" : "at least", issue.minimum);
    case "too_big":
      return amount(issue.origin, issue.inclusive === false ? "less than" : "at most", issue.maximum);
    default:
      return undefined;
  }
}

function amount(origin: string, bound: string, limit: number | bigint): string {
  const unit = units[origin];
  return unit === undefined ? `a number of ${bound} ${limit}` : `${bound} ${limit} ${unit}${Number(limit) === 1 ? "" : "s"}`;
}

// For every schema of the Worker, those of the route definitions included, which leave no other place to say it.
z.config({
  customError: issue => {
    const expected = expectation(issue);
    return expected && EXPECTED + expected;
  },
});

/** zod's issues as field, expected, got. `got` is shortened, and says nothing of a value that is missing. */
export function fieldErrors(error: z.core.$ZodError, input: unknown): FieldError[] {
  return error.issues.flatMap(issue => {
    if (issue.code === "unrecognized_keys") {
      return issue.keys.map(key => ({
        field: [...issue.path, key].join("."),
        expected: "no such field",
        got: show(at(input, [...issue.path, key])),
      }));
    }
    return [{ field: issue.path.join(".") || "body", expected: withoutExpected(issue.message), got: show(at(input, issue.path)) }];
  });
}

function withoutExpected(message: string): string {
  return message.startsWith(EXPECTED) ? message.slice(EXPECTED.length) : message;
}

function at(input: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>((value, key) => (typeof value === "object" && value !== null ? Reflect.get(value, key) : undefined), input);
}

const MAX_SHOWN = 80;

function show(value: unknown): string {
  if (value === undefined) return "nothing";
  const text = JSON.stringify(value);
  return text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}…` : text;
}
