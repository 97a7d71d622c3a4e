import { bodyLimit } from "hono/body-limit";
import { AtelierError } from "../shared/errors.ts";

/** Two prompts of the greatest length, every character escaped, and the rest. */
export const MAX_JSON_BYTES = 256 * 1024;

/** Refuses bodies that no request of the API needs. */
export const limitBody = bodyLimit({
  maxSize: MAX_JSON_BYTES,
  onError: () => {
    throw new AtelierError("payload_too_large", `Expected at most ${MAX_JSON_BYTES} bytes.`);
  },
});
