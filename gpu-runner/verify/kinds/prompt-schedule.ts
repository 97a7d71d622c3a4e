/** The texts of a prompt in A1111's language at each step of a run. */
import { z } from "zod";
import { parseSchedule, promptAt } from "../../prompt/schedule.ts";
import type { VerifyKind } from "../kind.ts";

const paramsSchema = z.strictObject({ prompt: z.string(), steps: z.int().positive(), earlierSteps: z.int().positive().optional() });

export const promptScheduleKind: VerifyKind = {
  kind: "prompt-schedule",
  supports: () => null,
  async run({ params }) {
    const { prompt, steps, earlierSteps } = paramsSchema.parse(params);
    const schedule = parseSchedule(prompt);
    const at = (step: number) => promptAt(schedule, { step, steps, ...(earlierSteps !== undefined && { earlierSteps }) });
    return { texts: { json: Array.from({ length: steps }, (_, i) => at(i + 1)) } };
  },
};
