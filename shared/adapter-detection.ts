import type { AdapterManifest } from "./adapter.ts";
import type { ByteSource } from "./adapters/byte-source.ts";
import { splitLoraKey } from "./adapters/lora-keys.ts";
import { FileError } from "./file-error.ts";
import { parseSafetensorsHeader, safetensorsHeaderBytes } from "./safetensors-header.ts";

/** What an adapter's files are, by their headers. Throws FileError. */
export async function detectAdapter(
  files: readonly { path: string; source: ByteSource }[],
): Promise<Omit<AdapterManifest, "hash" | "files">> {
  const { path, source } = files[0]!;
  const start = await source.read(0, Math.min(8, source.size));
  const { entries } = parseSafetensorsHeader(await source.read(8, safetensorsHeaderBytes(start, source.size)), source.size);
  const keys = [...entries.values()];
  if (!keys.every(({ name }) => splitLoraKey(name))) throw new FileError(path, "the keys of an adapter", keys[0]?.name ?? "none");
  const crossed = keys.find(({ name }) => /attn2.*to_k.*(down|lora_A)/.test(name));
  return {
    kind: "lora",
    layout: "kohya",
    families: [],
    cross_attention_dim: crossed?.shape[1] ?? null,
    text_widths: [],
    token: null,
    parameters: keys.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0),
  };
}
