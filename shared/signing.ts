import { CompactSign, compactVerify, importJWK, type JWK } from "jose";
import { z } from "zod";
import { adapterFileSchema } from "./adapter.ts";
import { parseJson } from "./json.ts";
import { contentHashSchema, idSchema, poolSchema, sha256Schema } from "./names.ts";

/**
 * Signed messages: compact JWS, Ed25519. Each kind has its own `typ`, audience and key, so that one can never stand in for another.
 * The algorithm is pinned; `jku`, `jwk`, `x5u` and `x5c` in a header are a reason to refuse.
 */
export const signedKinds = {
  offer: { typ: "atelier-offer+jws", aud: "atelier:dispatcher" },
  grant: { typ: "atelier-grant+jws", aud: "atelier:runner" },
  capability: { typ: "atelier-capability+jws", aud: "atelier:objects" },
} as const;
export type SignedKind = keyof typeof signedKinds;

/** What an execution computes: one picture, or one training. */
export const executionKinds = ["picture", "training"] as const;
export type ExecutionKind = (typeof executionKinds)[number];

/** Seconds by which clocks may differ. */
export const CLOCK_SKEW_S = 60;

const registered = {
  aud: z.string(),
  iat: z.int(),
  exp: z.int().describe("seconds since 1970"),
  jti: z.string().min(16),
};

/** Claims that an execution exists: what travels in the queue. No prompt. */
export const offerClaimsSchema = z.strictObject({
  ...registered,
  tenant: idSchema("tenant"),
  execution: idSchema("execution"),
  pool: poolSchema,
  params_sha256: sha256Schema,
  request_id: z.string(),
});
export type OfferClaims = z.infer<typeof offerClaimsSchema>;

/** Claims that an instance may compute these executions, with the capabilities that it needs for each. */
export const grantClaimsSchema = z.strictObject({
  ...registered,
  instance: idSchema("instance"),
  executions: z
    .array(
      z.strictObject({
        execution: idSchema("execution"),
        epoch: z.int().positive(),
        params_sha256: sha256Schema,
        attempt_deadline: z.int().describe("milliseconds since 1970; past it the attempt is lost"),
        request_id: z.string(),
        kind: z.enum(executionKinds),
        capabilities: z.strictObject({
          result: z.string().describe("capability: PUT the picture file; of a training, each of its files below the capability's key"),
          progress: z.string().describe("capability: POST progress"),
          checkpoint: z
            .strictObject({
              put: z.string().describe("capability: PUT a checkpoint, which takes the place of the one before"),
              get: z.string().describe("capability: GET the last checkpoint of any attempt; 404 where there is none"),
            })
            .nullable()
            .describe("of a training"),
        }),
        inputs: z
          .array(
            z.strictObject({
              sha256: sha256Schema,
              bytes: z.int().positive(),
              key: z.string().min(1).describe("object key"),
              capability: z.string().describe("GET the object"),
            }),
          )
          .describe("input files of the execution, each once: pictures, the files of its adapters, a training's dataset"),
        adapters: z
          .array(z.strictObject({ hash: contentHashSchema, files: z.array(adapterFileSchema).nonempty() }))
          .describe("what its adapters consist of; their files stand in `inputs`"),
      }),
    )
    .min(1),
});
export type GrantClaims = z.infer<typeof grantClaimsSchema>;

/** Claims that the bearer may do one thing with one object, within one lease. */
export const capabilityClaimsSchema = z.strictObject({
  ...registered,
  execution: idSchema("execution"),
  epoch: z.int().positive(),
  instance: idSchema("instance"),
  pool: poolSchema,
  method: z.enum(["GET", "PUT", "POST"]),
  key: z.string().min(1).describe("exact object key; one that ends in / stands for every training file below it"),
  max_bytes: z.int().positive(),
});
export type CapabilityClaims = z.infer<typeof capabilityClaimsSchema>;

const claimsSchemas = { offer: offerClaimsSchema, grant: grantClaimsSchema, capability: capabilityClaimsSchema } as const satisfies Record<
  SignedKind,
  z.ZodType
>;
export type Claims<K extends SignedKind> = z.infer<(typeof claimsSchemas)[K]>;

export const publicJwkSchema = z.object({ kty: z.literal("OKP"), crv: z.literal("Ed25519"), x: z.string(), kid: z.string().min(1) });
export const privateJwkSchema = publicJwkSchema.extend({ d: z.string() });
export type PublicJwk = z.infer<typeof publicJwkSchema>;
export type PrivateJwk = z.infer<typeof privateJwkSchema>;

/** The public half of a private key. */
export function publicJwk({ kty, crv, x, kid }: PrivateJwk): PublicJwk {
  return { kty, crv, x, kid };
}

/** Why a signed message was refused. `expired` alone says that it was genuine once. */
export type Refusal = "malformed" | "wrong_type" | "unknown_key" | "bad_signature" | "wrong_audience" | "expired" | "not_yet_valid";

export class SignatureRefused extends Error {
  readonly reason: Refusal;
  constructor(kind: SignedKind, reason: Refusal) {
    super(`${kind} refused: ${reason}`);
    this.name = "SignatureRefused";
    this.reason = reason;
  }
}

/** Signs claims; `aud`, `iat` and `jti` are filled in. `exp` is in seconds since 1970. */
export async function sign<K extends SignedKind>(
  kind: K,
  claims: Omit<Claims<K>, "aud" | "iat" | "jti">,
  key: PrivateJwk,
): Promise<string> {
  const { typ, aud } = signedKinds[kind];
  const payload = { ...claims, aud, iat: Math.floor(Date.now() / 1000), jti: crypto.randomUUID() };
  return new CompactSign(new TextEncoder().encode(JSON.stringify(payload)))
    .setProtectedHeader({ alg: "EdDSA", typ, kid: key.kid })
    .sign(await importJWK(key satisfies JWK, "EdDSA"));
}

const headerSchema = z.strictObject({ alg: z.literal("EdDSA"), typ: z.string(), kid: z.string() });

/**
 * Verifies signature, type, audience and times, and parses the claims.
 * @throws SignatureRefused with the first reason that holds.
 */
export async function verify<K extends SignedKind>(kind: K, jws: string, keys: readonly PublicJwk[], now = Date.now()): Promise<Claims<K>> {
  const { typ, aud } = signedKinds[kind];
  const refuse = (reason: Refusal) => new SignatureRefused(kind, reason);
  const header = headerSchema.safeParse(decodeHeader(jws));
  if (!header.success) throw refuse("malformed");
  if (header.data.typ !== typ) throw refuse("wrong_type");
  const key = keys.find(({ kid }) => kid === header.data.kid);
  if (!key) throw refuse("unknown_key");
  const verified = await compactVerify(jws, await importJWK(key satisfies JWK, "EdDSA"), { algorithms: ["EdDSA"] }).catch(() => {
    throw refuse("bad_signature");
  });
  const claims = claimsSchemas[kind].safeParse(parseJson(new TextDecoder().decode(verified.payload)));
  if (!claims.success) throw refuse("malformed");
  if (claims.data.aud !== aud) throw refuse("wrong_audience");
  if (now / 1000 > claims.data.exp + CLOCK_SKEW_S) throw refuse("expired");
  if (now / 1000 < claims.data.iat - CLOCK_SKEW_S) throw refuse("not_yet_valid");
  return claims.data as Claims<K>;
}

function decodeHeader(jws: string): unknown {
  const [encoded = "", ...rest] = jws.split(".");
  if (rest.length !== 2) return undefined;
  try {
    return parseJson(atob(encoded.replaceAll("-", "+").replaceAll("_", "/")));
  } catch {
    return undefined;
  }
}
