import { execFileSync } from "node:child_process";
import { appendFileSync, closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { createSecrets } from "../secrets.ts";

/** A failure that the user can mend: one clear sentence, no stack. */
export class StartError extends Error {}

/** Where a local Atelier keeps what it keeps. */
export function stateFolder(): string {
  return process.env.ATELIER_STATE ?? ".atelier";
}

/**
 * What a local Atelier keeps between starts, all in one folder outside git:
 * secrets.env, api-key, runner-token (mode 0600), edge/ (D1, R2, Durable Objects), runner/ (caches), logs/, lock, endpoint.json.
 */
export class LocalState {
  readonly folder: string;

  constructor(folder: string = stateFolder()) {
    this.folder = resolve(folder);
    mkdirSync(this.folder, { recursive: true, mode: 0o700 });
    mkdirSync(this.path("logs"), { recursive: true });
  }

  path(...parts: string[]): string {
    return join(this.folder, ...parts);
  }

  /** The Worker's secrets, made on first use and kept. */
  secrets(): Record<string, string> {
    const file = this.path("secrets.env");
    if (!existsSync(file)) {
      const text = Object.entries(createSecrets()).map(([name, value]) => `${name}='${value}'\n`);
      writeFileSync(file, text.join(""), { mode: 0o600, flag: "wx" });
    }
    const lines = readFileSync(file, "utf8").matchAll(/^([A-Z_]+)='(.*)'$/gm);
    return Object.fromEntries(Array.from(lines, ([, name, value]) => [name, value]));
  }

  /** A secret text that is made once and kept, readable by the owner alone. */
  async kept(name: string, make: () => Promise<string>): Promise<string> {
    const file = this.path(name);
    if (existsSync(file)) return readFileSync(file, "utf8").trim();
    const value = await make();
    writeFileSync(file, `${value}\n`, { mode: 0o600 });
    return value;
  }

  /** Where the CLI finds the running edge. */
  announce(url: string): void {
    writeFileSync(this.path("endpoint.json"), JSON.stringify({ url }));
  }

  /** Remembers a process group, so that the next start can end it if this one dies without a chance to. */
  remember(group: number): void {
    appendFileSync(this.path("processes"), `${group}\n`);
  }

  /** Ends every process group that was remembered and still lives. */
  endProcesses(): void {
    const file = this.path("processes");
    const groups = existsSync(file) ? readFileSync(file, "utf8").trim().split("\n").map(Number) : [];
    for (const group of groups.filter(isOurs)) process.kill(-group, "SIGKILL");
    rmSync(file, { force: true });
  }

  /**
   * Takes the folder for this process; the returned function gives it back.
   * @throws StartError when a living process holds it.
   */
  lock(): () => void {
    const file = this.path("lock");
    const holder = existsSync(file) ? Number(readFileSync(file, "utf8")) : undefined;
    if (holder !== undefined && isAlive(holder))
      throw new StartError(`Atelier is already running here (process ${holder}). Stop it first, or set ATELIER_STATE to another folder.`);
    rmSync(file, { force: true });
    this.endProcesses();
    try {
      const handle = openSync(file, "wx", 0o600);
      writeFileSync(handle, String(process.pid));
      closeSync(handle);
    } catch (cause) {
      throw new StartError(`Another start is under way in ${this.folder}.`, { cause });
    }
    return () => rmSync(file, { force: true });
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/** Whether a living process is a part of Atelier: a pid may have been given to another program meanwhile. */
function isOurs(pid: number): boolean {
  try {
    const command = execFileSync("ps", ["-o", "command=", "-p", String(pid)], { encoding: "utf8" });
    return /wrangler|gpu-runner[\\/]main\.ts/.test(command);
  } catch {
    return false;
  }
}
