/** The cache directory cannot be used; the message is one sentence that says why. */
export class CacheError extends Error {
  constructor(directory: string, cause: unknown) {
    const code = cause instanceof Error && "code" in cause ? String(cause.code) : "";
    const reasons: Record<string, string> = {
      ENOSPC: "no space left",
      EDQUOT: "quota exceeded",
      EACCES: "not writable",
      EROFS: "read-only",
      EPERM: "not permitted",
    };
    super(`cache directory ${directory}: ${reasons[code] ?? (cause instanceof Error ? cause.message : String(cause))}`, { cause });
    this.name = "CacheError";
  }
}
