/** How the client's parts send requests: with the key, again where the network or the service fails. */

export interface CallOptions {
  readonly signal?: AbortSignal;
}

export interface Call extends CallOptions {
  readonly method?: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  readonly json?: unknown;
  /** A file, in place of JSON. */
  readonly file?: Blob;
  readonly form?: FormData;
  readonly headers?: Readonly<Record<string, string>>;
}

export interface Transport {
  json<T>(path: string, call: Call): Promise<T>;
  send(path: string, call: Call): Promise<Response>;
}

/** SHA-256 of a file as 64 hexadecimal digits. */
export async function sha256Of(file: Blob): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
  return Array.from(digest, byte => byte.toString(16).padStart(2, "0")).join("");
}
