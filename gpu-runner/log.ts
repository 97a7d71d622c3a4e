import { type DestinationStream, type Logger, pino } from "pino";

export type { Logger } from "pino";

/** Fields that must never reach a log, wherever a caller might put them. */
const secret = ["prompt", "negative_prompt", "params", "request", "token", "grant", "capabilities", "authorization", "preview", "bytes"];

/** JSON logs, one object a line on standard output, written at once so that nothing is lost when the process is killed. */
export function createLogger(level: string, destination?: DestinationStream): Logger {
  return pino(
    {
      level,
      base: { service: "gpu-runner" },
      messageKey: "message",
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: label => ({ level: label }) },
      redact: { paths: secret.flatMap(name => [name, `*.${name}`]), censor: "[redacted]" },
    },
    destination ?? pino.destination({ fd: 1, sync: true }),
  );
}
