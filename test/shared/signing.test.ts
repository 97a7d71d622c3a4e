import { generateKeyPairSync } from "node:crypto";
import fc from "fast-check";
import { CompactSign, importJWK } from "jose";
import { describe, expect, it } from "vitest";
import {
  CLOCK_SKEW_S,
  type Claims,
  type PrivateJwk,
  privateJwkSchema,
  publicJwk,
  SignatureRefused,
  type SignedKind,
  sign,
  signedKinds,
  verify,
} from "../../shared/signing.ts";

function newKey(kid: string): PrivateJwk {
  return privateJwkSchema.parse({ ...generateKeyPairSync("ed25519").privateKey.export({ format: "jwk" }), kid });
}

const ulid = "01JD00000000000000000000AA";
const hash = "0".repeat(64);
const inAnHour = () => Math.floor(Date.now() / 1000) + 3600;

type Unsigned<K extends SignedKind> = Omit<Claims<K>, "aud" | "iat" | "jti">;
const claimsOf: { [K in SignedKind]: () => Unsigned<K> } = {
  offer: () => ({
    exp: inAnHour(),
    tenant: `ten_${ulid}`,
    execution: `exe_${ulid}`,
    pool: "default",
    params_sha256: hash,
    request_id: "req_1",
  }),
  grant: () => ({
    exp: inAnHour(),
    instance: `ins_${ulid}`,
    executions: [
      {
        execution: `exe_${ulid}`,
        epoch: 1,
        params_sha256: hash,
        attempt_deadline: Date.now() + 60_000,
        request_id: "req_1",
        kind: "picture" as const,
        capabilities: { result: "a", progress: "b", checkpoint: null },
        inputs: [{ sha256: hash, bytes: 1, key: "inputs/x", capability: "c" }],
        adapters: [{ hash: `sha256:${hash}`, files: [{ path: "a.safetensors", sha256: hash, bytes: 1 }] }],
      },
    ],
  }),
  capability: () => ({
    exp: inAnHour(),
    execution: `exe_${ulid}`,
    epoch: 1,
    instance: `ins_${ulid}`,
    pool: "default",
    method: "PUT",
    key: "staging/x",
    max_bytes: 10,
  }),
};
const kinds = Object.keys(signedKinds) as SignedKind[];
const signKind = (kind: SignedKind, key: PrivateJwk): Promise<string> =>
  kind === "offer"
    ? sign("offer", claimsOf.offer(), key)
    : kind === "grant"
      ? sign("grant", claimsOf.grant(), key)
      : sign("capability", claimsOf.capability(), key);

/** Signs anything at all, as a forger with the right key could. */
async function signRaw(header: Record<string, unknown>, payload: unknown, key: PrivateJwk): Promise<string> {
  return new CompactSign(new TextEncoder().encode(JSON.stringify(payload)))
    .setProtectedHeader({ alg: "EdDSA", ...header })
    .sign(await importJWK(key, "EdDSA"));
}

async function reasonOf(verifying: Promise<unknown>): Promise<string> {
  const error = await verifying.then(
    () => undefined,
    (caught: unknown) => caught,
  );
  expect(error).toBeInstanceOf(SignatureRefused);
  return (error as SignatureRefused).reason;
}

const key = newKey("one");
const keys = [publicJwk(newKey("other")), publicJwk(key)];

describe.each(kinds)("%s", kind => {
  const { typ, aud } = signedKinds[kind];
  const full = () => ({ ...claimsOf[kind](), aud, iat: Math.floor(Date.now() / 1000), jti: crypto.randomUUID() });

  it("comes back as it was signed, with audience, time and an id of its own", async () => {
    const claims = await verify(kind, await signKind(kind, key), keys);
    expect(claims).toMatchObject({
      ...claimsOf[kind](),
      exp: expect.any(Number),
      aud,
      ...(kind === "grant" && { executions: [expect.objectContaining({ epoch: 1 })] }),
    });
    expect((await verify(kind, await signKind(kind, key), keys)).jti).not.toBe(claims.jti);
  });

  it("is not taken for another kind, even under the same key", async () => {
    const jws = await signKind(kind, key);
    for (const other of kinds.filter(name => name !== kind)) {
      expect(await reasonOf(verify(other, jws, keys))).toBe("wrong_type");
      const dressed = await signRaw({ typ: signedKinds[other].typ, kid: key.kid }, full(), key);
      expect(["malformed", "wrong_audience"]).toContain(await reasonOf(verify(other, dressed, keys)));
    }
    expect(await reasonOf(verify(kind, await signRaw({ typ, kid: key.kid }, { ...full(), aud: "elsewhere" }, key), keys))).toBe(
      "wrong_audience",
    );
  });

  it("is refused when any one character of it is another", async () => {
    const jws = await signKind(kind, key);
    const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    await fc.assert(
      fc.asyncProperty(fc.nat(jws.length - 1), fc.constantFrom(...alphabet), async (at, character) => {
        fc.pre(jws[at] !== "." && jws[at] !== character);
        // The last digit of each part has bits that stand for nothing: another digit can name the same bytes.
        const bytes = (text: string) =>
          text
            .split(".")
            .map(part => Buffer.from(part, "base64url").toString("hex"))
            .join();
        const altered = jws.slice(0, at) + character + jws.slice(at + 1);
        fc.pre(bytes(altered) !== bytes(jws));
        await expect(verify(kind, altered, keys)).rejects.toBeInstanceOf(SignatureRefused);
      }),
      { numRuns: 200 },
    );
  });

  it("is refused without a signature, with alg none, or with another algorithm", async () => {
    const part = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");
    const none = `${part({ alg: "none", typ, kid: key.kid })}.${part(full())}.`;
    const hmac = await new CompactSign(new TextEncoder().encode(JSON.stringify(full())))
      .setProtectedHeader({ alg: "HS256", typ, kid: key.kid })
      .sign(Buffer.from(key.x, "base64url"));
    const [header, payload] = (await signKind(kind, key)).split(".");
    expect(await Promise.all([none, hmac].map(jws => reasonOf(verify(kind, jws, keys))))).toEqual(["malformed", "malformed"]);
    expect(await reasonOf(verify(kind, `${header}.${payload}.`, keys))).toBe("bad_signature");
  });

  it.each(["jku", "jwk", "x5u", "x5c", "crit"])("is refused when its header has %s", async member => {
    const value = member === "jwk" ? publicJwk(key) : member === "x5c" || member === "crit" ? ["b64"] : "https://keys.example/";
    const header = Buffer.from(JSON.stringify({ alg: "EdDSA", typ, kid: key.kid, [member]: value })).toString("base64url");
    const [, payload, signature] = (await signKind(kind, key)).split(".");
    expect(await reasonOf(verify(kind, `${header}.${payload}.${signature}`, keys))).toBe("malformed");
  });

  it("is refused under an unknown key, and under another key of the same name", async () => {
    expect(await reasonOf(verify(kind, await signKind(kind, newKey("unknown")), keys))).toBe("unknown_key");
    expect(await reasonOf(verify(kind, await signKind(kind, newKey("one")), keys))).toBe("bad_signature");
  });

  it("holds from its time to its end, give or take the clocks' skew", async () => {
    const jws = await signKind(kind, key);
    const { iat, exp } = await verify(kind, jws, keys);
    const at = (seconds: number) => verify(kind, jws, keys, seconds * 1000);
    await expect(at(exp + CLOCK_SKEW_S)).resolves.toBeDefined();
    expect(await reasonOf(at(exp + CLOCK_SKEW_S + 1))).toBe("expired");
    await expect(at(iat - CLOCK_SKEW_S)).resolves.toBeDefined();
    expect(await reasonOf(at(iat - CLOCK_SKEW_S - 1))).toBe("not_yet_valid");
  });

  it("is refused with a claim too many, one too few, or one of another type", async () => {
    const claims = full();
    const raw = (payload: unknown) => signRaw({ typ, kid: key.kid }, payload, key);
    expect(await reasonOf(verify(kind, await raw({ ...claims, extra: 1 }), keys))).toBe("malformed");
    for (const name of Object.keys(claims)) {
      const { [name as keyof typeof claims]: _, ...rest } = claims;
      expect(await reasonOf(verify(kind, await raw(rest), keys)), name).toBe("malformed");
      expect(await reasonOf(verify(kind, await raw({ ...claims, [name]: { not: "this" } }), keys)), name).toBe("malformed");
    }
  });
});

it("anything at all is refused without another kind of error", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.oneof(
        fc.string(),
        fc.array(fc.base64String(), { minLength: 3, maxLength: 3 }).map(parts => parts.join(".")),
      ),
      async text => {
        await expect(verify("offer", text, keys)).rejects.toBeInstanceOf(SignatureRefused);
      },
    ),
  );
});
