/** What Linux says of other processes; elsewhere there is no /proc, and nothing is said. */
import { readdirSync, readFileSync } from "node:fs";

/** `USER_HZ`: the unit of times in /proc, the same on every Linux architecture that Node runs on. */
const TICKS_PER_SECOND = 100;

interface ProcessTimes {
  readonly pid: number;
  readonly parent: number;
  readonly name: string;
  /** User and system time of the process, all threads, without its children. */
  readonly cpuSeconds: number;
}

/** CPU seconds used so far by all processes of this name below `ancestor`; undefined where the system does not tell. */
export function cpuSecondsOf(name: string, ancestor: number): number | undefined {
  if (process.platform !== "linux") return undefined;
  const all = readdirSync("/proc")
    .filter(entry => /^\d+$/.test(entry))
    .flatMap(entry => timesOf(Number(entry)) ?? []);
  const parents = new Map(all.map(({ pid, parent }) => [pid, parent]));
  const isBelow = (pid: number): boolean => pid === ancestor || isBelowParent(parents.get(pid));
  const isBelowParent = (parent: number | undefined): boolean => parent !== undefined && isBelow(parent);
  return all.filter(known => known.name === name && isBelow(known.pid)).reduce((sum, { cpuSeconds }) => sum + cpuSeconds, 0);
}

/** Undefined for a process that has just ended. */
function timesOf(pid: number): ProcessTimes | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  } catch {
    return undefined;
  }
  // The name stands in brackets and may itself hold spaces and brackets (proc_pid_stat(5)).
  const [open, close] = [stat.indexOf("("), stat.lastIndexOf(")")];
  const fields = stat.slice(close + 2).split(" ");
  const [parent, user, system] = [fields[1], fields[11], fields[12]].map(Number) as [number, number, number];
  return { pid, parent, name: stat.slice(open + 1, close), cpuSeconds: (user + system) / TICKS_PER_SECOND };
}
