/** All tensors of an adapter's file at once. */
import type { TensorF32 } from "../components.ts";
import { withTensorFile } from "./tensor-file.ts";

/** Throws ModelError for what breaks the file's format. */
export function readTensorFile(path: string): Promise<ReadonlyMap<string, TensorF32>> {
  return withTensorFile(path, file => new Map([...file.tensors].map(([name, { shape }]) => [name, { data: file.read(name), shape }])));
}
