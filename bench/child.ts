/** A measured process of its own: it answers each request, a line of JSON, with a line of JSON. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { z } from "zod";

const errorSchema = z.object({ error: z.string() });

export interface Child {
  /** @throws an Error with what the child said, or the end of its error output where it ended without an answer */
  ask<T>(request: unknown, answer: z.ZodType<T>): Promise<T>;
  /** Lets it end by itself and waits for that. */
  end(): Promise<void>;
}

export function startChild(command: string, args: readonly string[], env: Record<string, string> = {}): Child {
  const child = spawn(command, args, { stdio: "pipe", env: { ...process.env, ...env } });
  const closed = once(child, "close");
  // Awaited in `end`; a command that cannot be started is told by the next `ask`.
  closed.catch(() => {});
  child.stdin.on("error", () => {});
  let complaints = "";
  child.on("error", error => {
    complaints += error.message;
  });
  child.stderr.on("data", (text: Buffer) => {
    complaints = (complaints + text).slice(-2000);
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    async ask(request, answer) {
      child.stdin.write(`${JSON.stringify(request)}\n`);
      const { value, done } = await lines.next();
      if (done) {
        await closed.catch(() => {});
        throw new Error(`${[command, ...args].join(" ")} ended without an answer: ${complaints.trim()}`);
      }
      const message: unknown = JSON.parse(value);
      const failed = errorSchema.safeParse(message);
      if (failed.success) throw new Error(failed.data.error);
      return answer.parse(message);
    },
    async end() {
      child.stdin.end();
      await closed.catch(() => {});
    },
  };
}
