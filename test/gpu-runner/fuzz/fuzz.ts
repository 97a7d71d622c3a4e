/** Runs spoilt files through a child process and judges: each loads or is refused, in time, within its memory, without a crash. */
import { fork } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A case may take this long, and this much memory beside twice its file. */
export const limits = { ms: 1000, bytes: 64 * 2 ** 20 } as const;
/** What passes without a sign before the child counts as hung. */
const hangMs = 20_000;

export interface FuzzReport {
  cases: number;
  loaded: number;
  refused: number;
  slowestMs: number;
  /** Greatest memory of a case beside twice its file, in bytes. */
  greatestMemory: number;
  problems: string[];
}

interface Message {
  begins?: number;
  i?: number;
  seed: string;
  bytes: number;
  ms: number;
  peak: number;
  loaded?: string;
  refused?: string;
  broken?: string;
}

/** Cases `first` .. `first + count`; a child that dies or hangs is started again behind the case that it died of. */
export async function fuzz(goldens: string, first: number, count: number, onProgress?: (report: FuzzReport) => void): Promise<FuzzReport> {
  const report: FuzzReport = { cases: 0, loaded: 0, refused: 0, slowestMs: 0, greatestMemory: 0, problems: [] };
  const scratch = mkdtempSync(join(tmpdir(), "atelier-fuzz-"));
  try {
    for (let next = first; next < first + count; )
      next = await runChild({ goldens, scratch, next, end: first + count }, report, onProgress);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  return report;
}

interface ChildRun {
  goldens: string;
  scratch: string;
  next: number;
  end: number;
}

/** Gives the case to go on with. */
function runChild(
  { goldens, scratch, next, end }: ChildRun,
  report: FuzzReport,
  onProgress?: (report: FuzzReport) => void,
): Promise<number> {
  const args = [goldens, scratch, String(next), String(end - next)];
  const child = fork(join(import.meta.dirname, "child.ts"), args, {
    execArgv: ["--expose-gc"],
    stdio: ["ignore", "ignore", "pipe", "ipc"],
  });
  let current = next;
  let stderr = "";
  child.stderr?.on("data", (text: Buffer) => {
    stderr = (stderr + text.toString()).slice(-2000);
  });
  let timer = setTimeout(() => child.kill("SIGKILL"), hangMs);
  child.on("message", (message: Message) => {
    clearTimeout(timer);
    timer = setTimeout(() => child.kill("SIGKILL"), hangMs);
    if (message.begins !== undefined) current = message.begins;
    else {
      judge(message, report);
      onProgress?.(report);
    }
  });
  return new Promise(resolve => {
    child.on("exit", (code, signal) => {
      clearTimeout(timer);
      if (code === 0) return resolve(end);
      report.cases++;
      report.problems.push(`case ${current}: the process ended with ${signal ?? code}: ${stderr}`);
      resolve(current + 1);
    });
  });
}

function judge({ i, seed, bytes, ms, peak, loaded, broken }: Message, report: FuzzReport): void {
  report.cases++;
  if (broken !== undefined) report.problems.push(`case ${i} (${seed}): ${broken}`);
  else if (loaded !== undefined) report.loaded++;
  else report.refused++;
  const memory = peak - 2 * bytes;
  report.slowestMs = Math.max(report.slowestMs, ms);
  report.greatestMemory = Math.max(report.greatestMemory, memory);
  if (ms > limits.ms) report.problems.push(`case ${i} (${seed}): took ${Math.round(ms)} ms`);
  if (memory > limits.bytes) report.problems.push(`case ${i} (${seed}): took ${peak} bytes for a file of ${bytes}`);
}
