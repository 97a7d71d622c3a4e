import { describe, expect, test } from "vitest";
import { ConfigError, defaultMemoryBudget, readConfig } from "../../../gpu-runner/config.ts";
import { publicJwk } from "../../../shared/signing.ts";
import { newKey, TOKEN } from "./edge-peer.ts";

const key = publicJwk(newKey("k1"));
const valid = {
  ATELIER_EDGE_URL: "https://edge.example.com",
  ATELIER_RUNNER_TOKEN: TOKEN,
  ATELIER_GRANT_KEYS: JSON.stringify({ keys: [key] }),
  ATELIER_MODELS: "/models/a, /models/b",
};

test("reads what is given and fills in the rest", () => {
  const config = readConfig({ ...valid, ATELIER_THREADS: "", ATELIER_HTTP_PORT: "0", ATELIER_CACHE_DIR: "/cache" });
  expect(config).toEqual({
    edgeUrl: new URL("https://edge.example.com"),
    token: TOKEN,
    grantKeys: [key],
    models: ["/models/a", "/models/b"],
    modelRegistry: undefined,
    memoryBudget: defaultMemoryBudget(),
    cacheBudget: 128 * 2 ** 30,
    inputBudget: 32 * 2 ** 30,
    maxBatch: 4,
    provider: "cpu",
    threads: undefined,
    cacheDir: "/cache",
    http: { host: "127.0.0.1", port: 0 },
    logLevel: "info",
    watchdogMs: 60_000,
    loadMs: 900_000,
    trains: "between-steps",
    checkpointMs: 60_000,
    drainMs: 25_000,
  });
});

test("a registry may stand in for model folders", () => {
  const config = readConfig({ ...valid, ATELIER_MODELS: "", ATELIER_MODEL_REGISTRY: "/state/models.json", ATELIER_MEMORY_BUDGET: "1000" });
  expect([config.models, config.modelRegistry, config.memoryBudget]).toEqual([[], "/state/models.json", 1000]);
  expect(() => readConfig({ ...valid, ATELIER_MODELS: "" })).toThrow("ATELIER_MODELS is not set");
});

test("the weights' budget is a share of the machine's memory, or of a container's limit", () => {
  expect([defaultMemoryBudget(1000, 0), defaultMemoryBudget(1000, 500), defaultMemoryBudget(1000, 2 ** 60)]).toEqual([600, 300, 600]);
});

test("model folders may be separated like paths", () => {
  expect(readConfig({ ...valid, ATELIER_MODELS: "/a:/b,/c" }).models).toEqual(["/a", "/b", "/c"]);
});

test.each(["http://localhost:8787", "http://127.0.0.1:1", "http://[::1]:1"])("plain http is for this machine: %s", url => {
  expect(readConfig({ ...valid, ATELIER_EDGE_URL: url }).edgeUrl.href).toBe(`${url}/`);
});

describe("one sentence names the variable and no value of a secret", () => {
  const wrong: [string, Record<string, string>, string][] = [
    ["nothing given", { ATELIER_EDGE_URL: "" }, "ATELIER_EDGE_URL is not set"],
    ["plain http elsewhere", { ATELIER_EDGE_URL: "http://edge.example.com" }, "expected https"],
    ["another scheme", { ATELIER_EDGE_URL: "ftp://edge.example.com" }, "expected an http or https URL"],
    ["credentials in the URL", { ATELIER_EDGE_URL: "https://a:b@edge.example.com" }, "without credentials"],
    [
      "a key instead of a token",
      { ATELIER_RUNNER_TOKEN: "atl_local_secretsecretsecret" },
      "ATELIER_RUNNER_TOKEN: expected rnr_<id>.<secret>",
    ],
    ["keys that are no JSON", { ATELIER_GRANT_KEYS: "secretsecret" }, "ATELIER_GRANT_KEYS: expected a JWKS"],
    ["no key at all", { ATELIER_GRANT_KEYS: '{"keys":[]}' }, "ATELIER_GRANT_KEYS: expected a JWKS"],
    ["no folder", { ATELIER_MODELS: " , " }, "ATELIER_MODELS: expected model folders"],
    ["a batch that the protocol doesn't know", { ATELIER_MAX_BATCH: "65" }, "ATELIER_MAX_BATCH: "],
    ["an unknown provider", { ATELIER_PROVIDER: "tpu" }, "ATELIER_PROVIDER: "],
    ["a port out of range", { ATELIER_HTTP_PORT: "65536" }, "ATELIER_HTTP_PORT: "],
    ["a number that is none", { ATELIER_WATCHDOG_MS: "soon" }, "ATELIER_WATCHDOG_MS: expected a number"],
  ];
  test.each(wrong)("%s", (_, changes, expected) => {
    const read = () => readConfig({ ...valid, ...changes });
    expect(read).toThrow(ConfigError);
    expect(read).toThrow(expected);
    expect(read).not.toThrow(/secretsecret/);
  });
});
