import { adapterFileSchema } from "../shared/adapter.ts";
import { AtelierError } from "../shared/errors.ts";
import { type CapabilityClaims, publicJwk, SignatureRefused, verify } from "../shared/signing.ts";
import { bearerToken } from "./auth.ts";
import { type Env, settings } from "./env.ts";
import type { AppContext } from "./http.ts";
import { recordSecurityEvent } from "./security-events.ts";

/**
 * The claims of the request's capability, once everything in it holds: signature, time, method, exact key, and that its lease is the current one.
 * A runner may do nothing else with an object than what its capability names.
 * @throws AtelierError 401 refused signature, 403 another method or key, 409 the lease has ended
 */
export async function authorizeCapability(context: AppContext, method: CapabilityClaims["method"], key: string): Promise<CapabilityClaims> {
  const claims = await verifiedClaims(context);
  const { execution, epoch, instance, pool } = claims;
  if (claims.method !== method || !covers(claims.key, key)) {
    const requestId = context.get("requestId");
    await recordSecurityEvent(context.env, "capability_misused", {
      request_id: requestId,
      execution,
      epoch,
      instance,
      method,
      path: context.req.path,
    });
    throw new AtelierError("forbidden", `The capability is for ${claims.method} ${claims.key}.`);
  }
  if (!(await context.env.DISPATCHER.getByName(pool).holds({ v: 1, execution, epoch, instance }))) {
    throw new AtelierError("stale_epoch", `Epoch ${epoch} of ${execution} is no longer held by ${instance}.`);
  }
  return claims;
}

/** A key is named exactly, or is a well-formed path below one that ends in a slash. */
function covers(named: string, key: string): boolean {
  if (!named.endsWith("/")) return named === key;
  return key.startsWith(named) && adapterFileSchema.shape.path.safeParse(key.slice(named.length)).success;
}

async function verifiedClaims(context: AppContext): Promise<CapabilityClaims> {
  const jws = bearerToken(context, "capability");
  try {
    return await verify("capability", jws, [publicJwk(settings(context.env).CAPABILITY_KEY)]);
  } catch (error) {
    if (!(error instanceof SignatureRefused)) throw error;
    await recordRefusal(context.env, context, error);
    throw new AtelierError("unauthorized", error.message);
  }
}

/** An expired capability was genuine once, and noise without a header is no forgery: neither is worth a row that anybody can cause. */
async function recordRefusal(env: Env, context: AppContext, { reason }: SignatureRefused): Promise<void> {
  if (reason === "expired" || reason === "malformed") return;
  await recordSecurityEvent(env, "capability_refused", {
    request_id: context.get("requestId"),
    reason,
    method: context.req.method,
    path: context.req.path,
  });
}
