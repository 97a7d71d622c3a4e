/** Small files as clients send them. */

/** The first bytes of a png of this size, and then what makes it another one. Nothing on the edge decodes it. */
export function pngFile(width = 64, height = 64, content = ""): Uint8Array<ArrayBuffer> {
  const header = new DataView(new ArrayBuffer(33));
  for (const [i, byte] of [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 13, 0x49, 0x48, 0x44, 0x52].entries())
    header.setUint8(i, byte);
  header.setUint32(16, width);
  header.setUint32(20, height);
  return new Uint8Array([...new Uint8Array(header.buffer), ...new TextEncoder().encode(content)]);
}

export function safetensorsFile(tensors: Readonly<Record<string, readonly number[]>>): Uint8Array<ArrayBuffer> {
  let end = 0;
  const header = Object.fromEntries(
    Object.entries(tensors).map(([name, shape]) => {
      const begin = end;
      end += 4 * shape.reduce((product, dim) => product * dim, 1);
      return [name, { dtype: "F32", shape, data_offsets: [begin, end] }];
    }),
  );
  const text = new TextEncoder().encode(JSON.stringify(header));
  const length = new Uint8Array(new BigUint64Array([BigInt(text.length)]).buffer);
  const file = new Uint8Array(8 + text.length + end);
  file.set(length);
  file.set(text, 8);
  return file;
}

/** A LoRA in kohya's layout of one cross-attention key projection, `width` being that of the text states. */
export function loraFile(width = 96, rank = 2, hidden = 32): Uint8Array<ArrayBuffer> {
  const module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k";
  return safetensorsFile({
    [`${module}.lora_down.weight`]: [rank, width],
    [`${module}.lora_up.weight`]: [hidden, rank],
    [`${module}.alpha`]: [],
  });
}
