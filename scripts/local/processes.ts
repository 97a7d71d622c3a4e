import { type ChildProcess, spawn } from "node:child_process";
import { createWriteStream, readFileSync } from "node:fs";
import { createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { StartError } from "./state.ts";

/** A child in a process group of its own, so that it ends with all of its children. */
export interface Running {
  readonly pid: number;
  /** Resolves with the exit code (null after a signal) when the child itself has ended. */
  readonly ended: Promise<number | null>;
  /** Asks the child to end, and ends its whole group after `graceMs`. */
  stop(graceMs?: number): Promise<void>;
  /** Sends a signal to the whole group. */
  signal(signal: NodeJS.Signals): void;
}

/** Starts `node` with arguments; output goes to a log file. */
export function startProcess(
  args: readonly string[],
  options: { log: string; env: Record<string, string | undefined>; cwd?: string },
): Running {
  const child = spawn(process.execPath, args, {
    detached: true,
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...options.env },
    cwd: options.cwd,
  });
  const log = createWriteStream(options.log, { flags: "a", mode: 0o600 });
  child.stdout.pipe(log, { end: false });
  child.stderr.pipe(log, { end: false });
  const ended = new Promise<number | null>(resolve => child.once("close", resolve)).finally(() => log.end());
  const signal = (name: NodeJS.Signals) => signalGroup(child, name);
  const stop = async (graceMs = 5000) => {
    child.kill("SIGTERM");
    await Promise.race([ended, sleep(graceMs, undefined, { ref: false })]);
    signal("SIGKILL");
    await ended;
  };
  return { pid: child.pid ?? 0, ended, stop, signal };
}

function signalGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  try {
    if (child.pid) process.kill(-child.pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

/** A TCP port that is free now. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer().once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => (address && typeof address === "object" ? resolve(address.port) : reject(new Error("no port"))));
    });
  });
}

/** @throws StartError when something listens on the port. */
export function requireFreePort(port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const server = createServer().once("error", () => reject(new StartError(`Port ${port} is taken. Set ATELIER_PORT to another one.`)));
    server.listen(port, "127.0.0.1", () => server.close(() => resolve()));
  });
}

/**
 * Polls until `probe` answers true.
 * @throws StartError when the process ends first or the time is over, with the end of its log.
 */
export async function untilReady(
  name: string,
  running: Running,
  log: string,
  timeoutMs: number,
  probe: () => Promise<boolean>,
): Promise<void> {
  let ended = false;
  void running.ended.then(() => {
    ended = true;
  });
  for (const end = Date.now() + timeoutMs; Date.now() < end && !ended; await sleep(50)) if (await probe().catch(() => false)) return;
  const tail = readFileSync(log, "utf8").trimEnd().split("\n").slice(-8).join("\n");
  throw new StartError(`${name} ${ended ? "ended" : `was not ready after ${timeoutMs / 1000} s`}. The end of ${log}:\n${tail}`);
}
