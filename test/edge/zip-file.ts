/** A zip as archivers write it: local entries, directory, end. CRCs are left zero: nothing here reads them. */
export async function zipFile(
  files: Readonly<Record<string, Uint8Array<ArrayBuffer>>>,
  deflate: boolean,
): Promise<Uint8Array<ArrayBuffer>> {
  const parts: Uint8Array<ArrayBuffer>[] = [];
  const directory: Uint8Array<ArrayBuffer>[] = [];
  let at = 0;
  for (const [path, content] of Object.entries(files)) {
    const name = new Uint8Array(new TextEncoder().encode(path));
    const packed = deflate ? await deflated(content) : content;
    const sizes = [deflate ? 8 : 0, packed.length, content.length, name.length] as const;
    const local = header(0x04034b50, 30, 8, sizes);
    const entry = header(0x02014b50, 46, 10, sizes);
    new DataView(entry.buffer).setUint32(42, at, true);
    parts.push(local, name, packed);
    directory.push(entry, name);
    at += local.length + name.length + packed.length;
  }
  const bytes = directory.reduce((sum, { length }) => sum + length, 0);
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true);
  end.setUint16(10, Object.keys(files).length, true);
  end.setUint32(12, bytes, true);
  end.setUint32(16, at, true);
  return new Uint8Array(await new Blob([...parts, ...directory, new Uint8Array(end.buffer)]).arrayBuffer());
}

function header(
  signature: number,
  length: number,
  methodAt: number,
  [method, packed, bytes, name]: readonly [number, number, number, number],
): Uint8Array<ArrayBuffer> {
  const view = new DataView(new ArrayBuffer(length));
  view.setUint32(0, signature, true);
  view.setUint16(methodAt, method, true);
  view.setUint32(methodAt + 10, packed, true);
  view.setUint32(methodAt + 14, bytes, true);
  view.setUint16(methodAt + 18, name, true);
  return new Uint8Array(view.buffer);
}

async function deflated(content: Uint8Array<ArrayBuffer>): Promise<Uint8Array<ArrayBuffer>> {
  const stream = new Blob([content]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
