import { execFileSync, spawn, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, expect, test } from "vitest";
import { freePort } from "../../scripts/local/processes.ts";
import { generationViewSchema } from "../../shared/job.ts";

const script = fileURLToPath(new URL("../../scripts/start.ts", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "atelier-start-"));
afterAll(() => rmSync(folder, { recursive: true, force: true, maxRetries: 5 }));

/** `npm start` in a state folder of its own; resolves once it says how to stop it, or when it has ended. */
async function start(environment: Record<string, string>) {
  const child = spawn(process.execPath, [script], {
    env: { ...process.env, ATELIER_STATE: folder, ...environment },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  let ended: number | null | undefined;
  const closed = new Promise<number | null>(resolve => child.once("close", resolve)).then(code => {
    ended = code;
    return code;
  });
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding("utf8").on("data", text => {
      output += text;
    });
  await expect.poll(() => ended !== undefined || output.includes("Ctrl-C"), { timeout: 90_000, interval: 100 }).toBe(true);
  const interrupt = () => {
    child.kill("SIGINT");
    return closed;
  };
  return { output, closed, interrupt };
}

/** The command that was printed, run as pasted. */
function paste(output: string) {
  const command = output.slice(output.indexOf("curl "), output.indexOf("\n\nCtrl-C"));
  return generationViewSchema.parse(JSON.parse(execFileSync("sh", ["-c", command], { encoding: "utf8" })));
}

/** Process groups that the start remembered: the edge's and the runner's. */
function groups(): number[] {
  return readFileSync(join(folder, "processes"), "utf8").trim().split("\n").map(Number);
}

/** Which of these groups still have a process. */
function alive(ids: readonly number[]): number[] {
  const living = execFileSync("ps", ["-eo", "pgid="], { encoding: "utf8", maxBuffer: 1 << 24 })
    .split("\n")
    .map(Number);
  return ids.filter(id => living.includes(id));
}

test("npm start draws a first picture and prints a request that works when pasted; its state survives a restart; nothing is left after Ctrl-C", async context => {
  if (spawnSync("curl", ["--version"]).status !== 0) context.skip("curl is not installed");
  const port = String(await freePort());
  const first = await start({ ATELIER_PORT: port });
  expect(first.output).toMatch(/First picture after \d+\.\d s/);
  expect(first.output).toContain(`http://127.0.0.1:${port}/`);
  const drawn = paste(first.output);
  expect(drawn).toMatchObject({ status: "succeeded", pictures: [{ seed: 7, cached: false }] });

  const second = await start({ ATELIER_PORT: String(await freePort()) });
  expect(second.output).toMatch(/^Atelier is already running here \(process \d+\)\./);
  expect(await second.closed).toBe(1);

  for (const name of readdirSync(folder).filter(name => ["secrets.env", "api-key", "runner-token"].includes(name))) {
    expect(statSync(join(folder, name)).mode & 0o777, name).toBe(0o600);
  }
  const started = groups();
  expect(alive(started)).toEqual(started);
  expect(await first.interrupt()).toBe(0);
  // The kernel takes a moment to bury what was killed.
  await expect.poll(() => alive(started), { timeout: 5000 }).toEqual([]);

  const again = await start({ ATELIER_PORT: port });
  expect(paste(again.output).pictures).toMatchObject([{ cached: true, sha256: drawn.pictures[0]!.sha256 }]);
  expect(await again.interrupt()).toBe(0);
});

test("a taken port is one clear sentence", async () => {
  const server = createServer();
  const port = await freePort();
  await new Promise<void>(resolve => server.listen(port, "127.0.0.1", resolve));
  const { output, closed } = await start({ ATELIER_PORT: String(port) });
  expect(await closed).toBe(1);
  expect(output.trimEnd().split("\n").at(-1)).toBe(`Port ${port} is taken. Set ATELIER_PORT to another one.`);
  await new Promise(resolve => server.close(resolve));
});

test("an unreadable model is one clear sentence that names file and key", async () => {
  const model = join(folder, "broken");
  execFileSync("cp", ["-r", fileURLToPath(new URL("../../models/pocket", import.meta.url)), model]);
  const weights = join(model, "unet/diffusion_pytorch_model.safetensors");
  writeFileSync(weights, readFileSync(weights).subarray(0, 100_000));
  const { output, closed } = await start({ ATELIER_PORT: String(await freePort()), ATELIER_MODEL: model });
  expect(await closed).toBe(1);
  const said = output
    .trimEnd()
    .split("\n")
    .filter(line => !line.endsWith("…"));
  expect(said).toHaveLength(1);
  expect(said[0]).toContain("diffusion_pytorch_model.safetensors");
  expect(existsSync(join(folder, "processes"))).toBe(false);
});
