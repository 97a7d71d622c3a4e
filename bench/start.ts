import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { freePort } from "../scripts/local/processes.ts";
import { LocalState } from "../scripts/local/state.ts";
import type { Benchmark } from "./benchmark.ts";
import { atEnd, withScratchFolder } from "./scratch.ts";
import { median } from "./statistics.ts";

export const start: Benchmark = {
  about:
    "seconds from `npm start` until it says that the first picture is there; cold: an empty state folder, warm: that of an earlier start",
  async run({ model, rounds = 3 }, say) {
    const cold: number[] = [];
    const warm: number[] = [];
    for (let round = 0; round < rounds; round++)
      await withScratchFolder(async folder => {
        cold.push(await secondsToPicture(folder, model));
        warm.push(await secondsToPicture(folder, model));
        say(`cold ${cold.at(-1)!.toFixed(1)} s, warm ${warm.at(-1)!.toFixed(1)} s`);
      });
    const row = (state: string, seconds: number[]) => ({
      state,
      "median s": median(seconds),
      "min s": Math.min(...seconds),
      "max s": Math.max(...seconds),
    });
    return [row("cold", cold), row("warm", warm)];
  },
};

/** Starts the product as a user does, stops it as Ctrl-C does. @throws an Error with its output where no picture came */
async function secondsToPicture(stateFolder: string, model: string): Promise<number> {
  const env = { ...process.env, ATELIER_STATE: stateFolder, ATELIER_PORT: String(await freePort()), ATELIER_MODEL: model };
  const began = performance.now();
  // A process group of its own: a terminal's Ctrl-C reaches all of a group too.
  const npm = spawn("npm", ["start"], {
    cwd: fileURLToPath(new URL("..", import.meta.url)),
    env,
    detached: true,
    stdio: ["ignore", "pipe", "pipe"],
  });
  const closed = once(npm, "close");
  const signal = (name: NodeJS.Signals) => {
    if (npm.pid && npm.exitCode === null) process.kill(-npm.pid, name);
  };
  const done = atEnd(() => {
    signal("SIGKILL");
    new LocalState(stateFolder).endProcesses();
  });
  let output = "";
  npm.stderr.on("data", (text: Buffer) => {
    output += text;
  });
  try {
    for await (const line of createInterface({ input: npm.stdout })) {
      output += `${line}\n`;
      if (line.startsWith("First picture")) return (performance.now() - began) / 1000;
    }
    throw new Error(`npm start made no picture:\n${output.trim()}`);
  } finally {
    signal("SIGINT");
    npm.stdout.resume();
    await closed;
    done();
  }
}
