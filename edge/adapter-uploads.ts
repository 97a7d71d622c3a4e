import { type AdapterFile, adapterHash, withoutCommonFolder } from "../shared/adapter.ts";
import { type AdapterUpload, type AdapterView, adapterViewSchema, MAX_ADAPTER_FILES } from "../shared/adapter-resource.ts";
import { sha256Hex } from "../shared/canonical.ts";
import { AtelierError, type FieldError } from "../shared/errors.ts";
import { inspectAdapter } from "./adapter-inspection.ts";
import { removeFiles } from "./artifacts.ts";
import type { Principal } from "./auth.ts";
import { database } from "./database.ts";
import type { Env } from "./env.ts";
import { type TenantStore, tenantStore } from "./tenant.ts";
import { adapterKey, type StoredAdapter } from "./tenant-files.ts";
import { uploadCapability } from "./upload-urls.ts";

/** Most adapters of a tenant, every version counted. */
export const MAX_ADAPTERS_OF_TENANT = 1000;
/** Large files take their time. */
const CAPABILITY_TTL_S = 24 * 3600;

/** Path of the URL that takes a file of an adapter: by its content, since paths are logged and a file's name is its owner's business. */
export function filePath(id: string, sha256: string): string {
  return `/v1/adapters/${id}/files/${sha256}`;
}

/** Registers what a client says of an adapter and its files; it is ready at once where they lie in the bucket already. */
export async function openAdapter(
  env: Env,
  principal: Pick<Principal, "tenant" | "scopes">,
  id: string,
  stated: AdapterUpload,
): Promise<StoredAdapter> {
  if (stated.visibility === "public" && !principal.scopes.includes("publish"))
    throw new AtelierError("forbidden", "The key lacks the scope publish, which making an adapter public needs.");
  const { name, visibility, kind, token } = stated;
  const files = withoutCommonFolder(stated.files);
  const store = tenantStore(database(env), principal.tenant);
  const opened = await store.openAdapter(
    { id, name, hash: await adapterHash(files), visibility, stated_kind: kind ?? null, token: token ?? null, created_at: Date.now() },
    files,
    MAX_ADAPTERS_OF_TENANT,
  );
  if (!opened) throw new AtelierError("conflict", `There are ${MAX_ADAPTERS_OF_TENANT} adapters already: delete some that are not used.`);
  const { adapter } = opened;
  // Whoever sends an adapter again wants it to work: what has become of its files is looked at anew.
  const lacking = adapter.status === "ready" && (await missingFiles(env, opened.files, store.tenant)).size > 0;
  const current = lacking ? ((await store.reopenAdapter(adapter.id, Date.now())) ?? opened) : opened;
  return current.adapter.status === "uploading" ? completeAdapter(env, store, current) : current;
}

/** Looks whether every file has come, and if so, what the adapter is. An adapter that is settled, or still lacks files, stays as it is. */
export async function completeAdapter(env: Env, store: TenantStore, stored: StoredAdapter): Promise<StoredAdapter> {
  const { adapter } = stored;
  if (adapter.status !== "uploading" || (await missingFiles(env, stored.files, store.tenant)).size > 0) return stored;
  const inspection = await inspectAdapter(env.BUCKET, stored);
  const outcome =
    "manifest" in inspection
      ? { status: "ready" as const, manifest: inspection.manifest, reasons: null }
      : { status: "refused" as const, manifest: null, reasons: inspection.reasons };
  const settled = (await store.settleAdapter(adapter.id, outcome)) ?? stored;
  if (outcome.status === "refused") await removeFiles(env, await store.unusedAdapterFiles(adapter.id));
  return settled;
}

/** Paths of the files that have not come. */
async function missingFiles(
  env: Env,
  files: readonly { readonly path: string; readonly sha256: string; readonly bytes: number }[],
  tenant: string,
): Promise<Set<string>> {
  const present = await Promise.all(files.map(({ sha256 }) => env.BUCKET.head(adapterKey(tenant, sha256))));
  return new Set(files.filter((file, i) => present[i]?.size !== file.bytes).map(({ path }) => path));
}

/** The adapter as a client sees it, without what lets it send files: as it may be stored. */
export function adapterView({ adapter, files }: StoredAdapter, tenant: string): AdapterView {
  const { id, name, version, hash, visibility, status } = adapter;
  const manifest = adapterViewSchema.shape.manifest.parse(adapter.manifest && withoutRepeated(adapter.manifest));
  const kind = adapterViewSchema.shape.kind.parse(adapter.manifest ? Reflect.get(adapter.manifest, "kind") : null);
  return {
    ...{ id, object: "adapter", name, version, hash, visibility, status, kind, manifest },
    owned: adapter.tenant_id === tenant,
    reasons: adapter.reasons ?? [],
    token: kind === "textual-inversion" ? (adapter.token ?? String(Reflect.get(adapter.manifest ?? {}, "token") ?? name)) : null,
    bytes: files.reduce((sum, file) => sum + file.bytes, 0),
    created_at: new Date(adapter.created_at).toISOString(),
    files: files.map(({ path, sha256, bytes }) => ({ path, sha256, bytes, upload: null })),
  };
}

function withoutRepeated(manifest: unknown): unknown {
  if (typeof manifest !== "object" || manifest === null) return manifest;
  const { hash: _hash, kind: _kind, files: _files, token: _token, ...rest } = manifest as Record<string, unknown>;
  return rest;
}

/** The view with a URL for each file that has not come, where it is the client's own. */
export async function withCapabilities(env: Env, view: AdapterView, tenant: string, origin: string): Promise<AdapterView> {
  if (view.status !== "uploading" || !view.owned) return view;
  const missing = await missingFiles(env, view.files, tenant);
  const files = await Promise.all(
    view.files.map(async file => {
      if (!missing.has(file.path)) return file;
      const target = { origin, path: filePath(view.id, file.sha256), mediaType: "application/octet-stream", ttlS: CAPABILITY_TTL_S };
      return { ...file, upload: await uploadCapability(env, target) };
    }),
  );
  return { ...view, files };
}

/** Files of a form, stored where a file of their content is expected. */
export async function storeFormFiles(env: Env, tenant: string, files: readonly File[]): Promise<AdapterFile[]> {
  const named = files.map(file => ({ path: safePath(file.name), file }));
  const errors = formErrors(named);
  if (errors.length > 0) throw new AtelierError("invalid_request", undefined, { errors });
  const stored: AdapterFile[] = [];
  // One after the other: each is held in memory while it is hashed.
  for (const { path, file } of named) {
    const bytes = new Uint8Array(await file.arrayBuffer());
    const sha256 = await sha256Hex(bytes);
    await env.BUCKET.put(adapterKey(tenant, sha256), bytes, { sha256 });
    stored.push({ path, sha256, bytes: bytes.length });
  }
  return stored;
}

function formErrors(named: readonly { readonly path: string; readonly file: File }[]): FieldError[] {
  const field = "file";
  if (named.length === 0 || named.length > MAX_ADAPTER_FILES)
    return [{ field, expected: `1 to ${MAX_ADAPTER_FILES} files`, got: `${named.length} files` }];
  const paths = named.map(({ path }) => path);
  return [
    ...named.filter(({ file }) => file.size === 0).map(({ path }) => ({ field, expected: "files that are not empty", got: path })),
    ...paths.filter((path, i) => paths.indexOf(path) < i).map(path => ({ field, expected: "paths that differ", got: path })),
  ];
}

/** A name that people gave a file, as a path that is taken. */
function safePath(name: string): string {
  const safe = name
    .replaceAll("\\", "/")
    .split("/")
    .map(part => part.replaceAll(/[^A-Za-z0-9._-]/g, "_").replace(/^\.+/, ""))
    .filter(part => part !== "");
  return (
    safe
      .join("/")
      .slice(-200)
      .replace(/^[./]+/, "") || "file"
  );
}

/** The name of an adapter that is called as its file. */
export function nameOfFile(name: string): string {
  const stem = safePath(name)
    .split("/")
    .at(-1)!
    .replace(/\.(safetensors|pt|pth|bin|ckpt)$/i, "");
  return stem.replace(/^[^A-Za-z0-9]+/, "").slice(0, 100) || "adapter";
}
