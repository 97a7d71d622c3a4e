/** A request's adapters, read and fitted to its model and size. */
import type { PictureRequest } from "../../shared/picture.ts";
import type { PictureContext, PictureModel } from "./context.ts";
import { type ItemAdapters, noAdapters } from "./item-adapters.ts";

/** @throws RangeError that names the adapter */
export async function resolveAdapters(_context: PictureContext, _base: PictureModel, request: PictureRequest): Promise<ItemAdapters> {
  const [first] = request.adapters;
  if (first) throw new RangeError(`adapters: expected none, got a ${first.kind}`);
  return noAdapters;
}
