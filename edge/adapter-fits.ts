import type { AdapterManifest } from "../shared/adapter.ts";
import type { ModelManifest } from "../shared/model.ts";

export function adapterFits(manifest: AdapterManifest, model: ModelManifest): string | null {
  const { cross_attention_dim: got } = manifest;
  if (got !== null && got !== model.cross_attention_dim)
    return `an adapter of text width ${model.cross_attention_dim}, which the model ${model.name} has; this one is of width ${got}`;
  return null;
}
