import { type AdapterManifest, adapterManifestSchema } from "../shared/adapter.ts";
import { AtelierError, type FieldError } from "../shared/errors.ts";
import type { GenerationRequest } from "../shared/generation.ts";
import type { ExecutionInputs } from "./inputs.ts";
import type { TenantStore } from "./tenant.ts";
import { adapterKey, type StoredAdapter } from "./tenant-files.ts";

/** An adapter that a request may use. */
export interface ReadyAdapter {
  readonly id: string;
  readonly name: string;
  readonly version: number;
  readonly manifest: AdapterManifest;
  /** Of a textual inversion: the word for it where the request names none. */
  readonly token: string;
  readonly files: ExecutionInputs["files"];
}

/** Adapters by what requests call them: name, id or content hash. */
export type ReadyAdapters = ReadonlyMap<string, ReadyAdapter>;

/**
 * Finds the adapters of a request. `tags`: those that its prompts name, with the field of each prompt.
 * @throws AtelierError invalid_request with the field of each that is not there, or not ready
 */
export async function resolveAdapters(
  store: TenantStore,
  request: GenerationRequest,
  tags: ReadonlyMap<string, string>,
): Promise<ReadyAdapters> {
  const fields = new Map(tags);
  const add = (settings: GenerationRequest["adapters"], field: string) => {
    for (const [i, { adapter }] of settings.entries()) if (!fields.has(adapter)) fields.set(adapter, `${field}.${i}.adapter`);
  };
  add(request.adapters, "adapters");
  for (const [i, { adapters }] of request.per_image.entries()) add(adapters ?? [], `per_image.${i}.adapters`);
  if (fields.size === 0) return new Map();
  const stored = await store.adapters([...fields.keys()]);
  const ready = new Map<string, ReadyAdapter>();
  const errors: FieldError[] = [];
  for (const [reference, field] of fields) {
    const found = stored.get(reference);
    if (found?.adapter.status === "ready") ready.set(reference, readyAdapter(found));
    else errors.push({ field, expected: missing(found), got: JSON.stringify(reference) });
  }
  if (errors.length > 0) throw new AtelierError("invalid_request", undefined, { errors });
  return ready;
}

function missing(found: StoredAdapter | undefined): string {
  if (!found) return "the name, id or content hash of an adapter of GET /v1/adapters";
  return found.adapter.status === "refused" ? "an adapter that was not refused" : "an adapter whose files have all come";
}

function readyAdapter({ adapter, files }: StoredAdapter): ReadyAdapter {
  const manifest = adapterManifestSchema.parse(adapter.manifest);
  const { id, name, version, tenant_id, token } = adapter;
  return {
    ...{ id, name, version, manifest },
    token: token ?? manifest.token ?? name,
    files: files.map(({ sha256, bytes }) => ({ sha256, bytes, key: adapterKey(tenant_id, sha256) })),
  };
}
