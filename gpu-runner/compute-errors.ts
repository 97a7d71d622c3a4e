/** How a computation, or the start of the model thread, ends without a result. */
import type { ErrorCode } from "../shared/errors.ts";

/** The models could not be loaded. `diskFull`: it may work later, when there is room for the cache again. */
export class ModelLoadFailed extends Error {
  override readonly name = "ModelLoadFailed";
  readonly diskFull: boolean;
  constructor(message: string, diskFull = false) {
    super(message);
    this.diskFull = diskFull;
  }
}

/** A computation ended without a picture. The message is safe to show to the client. */
export class ComputeFailed extends Error {
  override readonly name = "ComputeFailed";
  readonly code: ErrorCode;
  readonly retryable: boolean;
  /** What the log says beyond the message. */
  readonly detail: string;
  constructor(code: ErrorCode, message: string, retryable: boolean, detail = message) {
    super(message);
    this.detail = detail;
    this.code = code;
    this.retryable = retryable;
  }
}

/** A computation stopped because `cancel` was called. */
export class ComputeCanceled extends Error {
  override readonly name = "ComputeCanceled";
}
