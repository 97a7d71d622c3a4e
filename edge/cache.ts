import { AtelierError } from "../shared/errors.ts";
import type { CacheMode } from "../shared/generation.ts";
import type { Env } from "./env.ts";
import type { PlannedPicture } from "./generation.ts";
import { log } from "./log.ts";
import type { TenantStore } from "./tenant.ts";

/**
 * Looks every picture up and forgets the entries whose object is gone, so that acceptance (tenant.ts) finds only what can be served.
 * `auto` without a seed has just drawn a random one and `fresh` computes anew: neither has anything to look up.
 * @throws AtelierError cache_miss where `only` was asked for and a picture is missing
 */
export async function lookUp(
  env: Env,
  store: TenantStore,
  pictures: readonly PlannedPicture[],
  { cache, seedGiven, requestId }: { cache: CacheMode; seedGiven: boolean; requestId: string },
): Promise<void> {
  if (cache === "fresh" || (cache === "auto" && !seedGiven)) return;
  const rows = await store.cached(pictures.map(({ hash }) => hash));
  const objects = await Promise.all(rows.map(({ r2_key }) => env.BUCKET.head(r2_key)));
  const gone = rows.filter((_, i) => objects[i] === null);
  if (gone.length > 0) {
    log("warn", "cached objects are gone", { request_id: requestId, tenant: store.tenant, count: gone.length });
    await store.uncache(gone.map(({ id }) => id));
  }
  if (cache === "only" && rows.length - gone.length < pictures.length) throw new AtelierError("cache_miss");
}
