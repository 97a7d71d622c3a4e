import { z } from "zod";
import { privateJwkSchema } from "../shared/signing.ts";
import type { Dispatcher } from "./dispatcher/dispatcher.ts";
import type { JobEvents } from "./events/job-events.ts";

/** Bindings and variables of the Worker, as wrangler.toml and the secrets name them. */
export interface Env {
  readonly DB: D1Database;
  readonly BUCKET: R2Bucket;
  readonly OFFERS: Queue<OfferMessage>;
  readonly DISPATCHER: DurableObjectNamespace<Dispatcher>;
  readonly JOB_EVENTS: DurableObjectNamespace<JobEvents>;
  readonly UI: Fetcher;
  readonly [variable: string]: unknown;
}

/** Body of a queue message: a signed offer and nothing else. */
export const offerMessageSchema = z.strictObject({ offer: z.string() });
export type OfferMessage = z.infer<typeof offerMessageSchema>;

const milliseconds = z.coerce.number().int().positive();
const json = z.string().transform((text, context) => {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    context.addIssue("expected JSON");
    return z.NEVER;
  }
});

const settingsSchema = z.object({
  ENVIRONMENT: z.string().regex(/^[a-z0-9]{2,12}$/),
  LEASE_MS: milliseconds,
  HEARTBEAT_MS: milliseconds,
  ACK_MS: milliseconds,
  STALL_MS: milliseconds,
  ATTEMPT_MS: milliseconds,
  MAX_ATTEMPTS: z.coerce.number().int().min(1),
  /** Share of a pool's runners that may compute trainings at once, so that pictures go on being made; one always may. */
  TRAINING_SHARE: z.coerce.number().min(0).max(1).default(0.5),
  SWEEP_MS: milliseconds,
  ORPHAN_GRACE_MS: milliseconds,
  PICTURE_URL_TTL_S: z.coerce.number().int().positive(),
  /** Secrets. The three keys are private Ed25519 JWKs with a kid. Peppers: {"<id>": "<base64url>", …}; the last one is used for new hashes. */
  OFFER_KEY: json.pipe(privateJwkSchema),
  GRANT_KEY: json.pipe(privateJwkSchema),
  CAPABILITY_KEY: json.pipe(privateJwkSchema),
  PEPPERS: json.pipe(z.record(z.string().min(1), z.string().min(22))),
  URL_KEY: z.string().min(22),
  ADMIN_TOKEN: z.string().min(22),
});
export type Settings = z.infer<typeof settingsSchema>;

const parsed = new WeakMap<Env, Settings>();

/** The Worker's variables and secrets, parsed once per isolate. @throws an Error that names what is missing or malformed, never its value. */
export function settings(env: Env): Settings {
  const known = parsed.get(env);
  if (known) return known;
  const result = settingsSchema.safeParse(env);
  if (!result.success)
    throw new Error(
      `the Worker's settings are not valid: ${result.error.issues.map(({ path, message }) => `${path.join(".")}: ${message}`).join("; ")}`,
    );
  parsed.set(env, result.data);
  return result.data;
}
