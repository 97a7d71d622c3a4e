import { publicJwk, SignatureRefused, verify } from "../../shared/signing.ts";
import { type Env, offerMessageSchema, settings } from "../env.ts";
import { errorFields, log } from "../log.ts";
import { recordSecurityEvent } from "../security-events.ts";

/** Where messages end up that could not be delivered. */
export const DEAD_LETTER_QUEUE = "atelier-offers-dead";

/** How long a message waits before it is delivered again, in seconds: doubled each time, at most a minute. */
export function retryDelay(attempts: number): number {
  return Math.min(60, 2 ** Math.min(attempts, 10));
}

/** The queues' push consumer: verified offers go to their pool's dispatcher, dead letters into D1. Each message is answered for itself. */
export async function consumeQueue(batch: MessageBatch<unknown>, env: Env): Promise<void> {
  const consume = batch.queue === DEAD_LETTER_QUEUE ? storeDeadLetter : takeOffer;
  await Promise.all(
    batch.messages.map(async message => {
      try {
        await consume(env, message, batch.queue);
        message.ack();
      } catch (error) {
        log("warn", "queue message will be delivered again", { message: message.id, attempts: message.attempts, ...errorFields(error) });
        message.retry({ delaySeconds: retryDelay(message.attempts) });
      }
    }),
  );
}

/** Nothing but a genuine, current offer reaches a dispatcher; whatever else says an execution's name leaves that execution untouched. */
async function takeOffer(env: Env, { id, body }: Message): Promise<void> {
  const parsed = offerMessageSchema.safeParse(body);
  if (!parsed.success) return recordSecurityEvent(env, "offer_refused", { message: id, reason: "malformed" });
  const claims = await verify("offer", parsed.data.offer, [publicJwk(settings(env).OFFER_KEY)]).catch((error: unknown) => {
    if (error instanceof SignatureRefused) return error;
    throw error;
  });
  if (claims instanceof SignatureRefused) {
    // An expired one was genuine once: its job's deadline has passed.
    if (claims.reason === "expired") log("info", "offer expired", { message: id });
    else await recordSecurityEvent(env, "offer_refused", { message: id, reason: claims.reason });
    return;
  }
  const { execution, tenant, pool, params_sha256, request_id } = claims;
  const taken = await env.DISPATCHER.getByName(pool).offer({ v: 1, execution, tenant, params_sha256, request_id });
  if (taken === "altered") await recordSecurityEvent(env, "offer_refused", { message: id, reason: "altered", execution, request_id });
  if (taken !== "queued") log("info", "offer without effect", { execution, request_id, pool, taken });
}

async function storeDeadLetter(env: Env, { id, body, attempts }: Message, queue: string): Promise<void> {
  await env.DB.prepare("INSERT INTO dead_letters (id, queue, body, attempts, created_at) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING")
    .bind(id, queue, JSON.stringify(body), attempts, Date.now())
    .run();
}
