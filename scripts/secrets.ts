import { generateKeyPairSync, randomBytes } from "node:crypto";

/** The Worker's secrets (edge/env.ts), made anew: three Ed25519 signing keys, a pepper, the URL key and the admin token. */
export function createSecrets(): Record<string, string> {
  return {
    OFFER_KEY: signingKey("offer"),
    GRANT_KEY: signingKey("grant"),
    CAPABILITY_KEY: signingKey("capability"),
    PEPPERS: JSON.stringify({ [`p${Date.now().toString(36)}`]: random() }),
    URL_KEY: random(),
    ADMIN_TOKEN: random(),
  };
}

function random(): string {
  return randomBytes(32).toString("base64url");
}

function signingKey(name: string): string {
  const jwk = generateKeyPairSync("ed25519").privateKey.export({ format: "jwk" });
  return JSON.stringify({ ...jwk, kid: `${name}-${randomBytes(4).toString("hex")}` });
}
