import { describe, expect, test } from "vitest";
import { ConfigError, readConfig } from "../../../gpu-runner/config.ts";
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
    provider: "cpu",
    threads: undefined,
    cacheDir: "/cache",
    http: { host: "127.0.0.1", port: 0 },
    logLevel: "info",
    watchdogMs: 60_000,
    loadMs: 900_000,
    drainMs: 25_000,
  });
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
