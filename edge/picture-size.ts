/** Width and height in pixels. */
export interface PixelSize {
  readonly width: number;
  readonly height: number;
}

/**
 * The size that the first bytes of a png, webp or jpeg file state; undefined where they don't tell. Only headers are read, nothing is decoded:
 * what a picture really holds the runner finds out, within its own limits.
 */
export function pictureSize(head: Uint8Array): PixelSize | undefined {
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  try {
    const found = head[0] === 0x89 ? pngSize(view) : head[0] === 0xff ? jpegSize(view) : webpSize(view);
    return found && found.width > 0 && found.height > 0 ? found : undefined;
  } catch (error) {
    // The header goes on after what was read.
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}

/** https://www.w3.org/TR/png/#11IHDR */
function pngSize(view: DataView): PixelSize {
  return { width: view.getUint32(16), height: view.getUint32(20) };
}

/** Segments up to the frame header (ITU T.81, B.2.2), whose markers are C0 to CF without C4, C8 and CC. */
function jpegSize(view: DataView): PixelSize | undefined {
  for (let at = 2; ; at += 2 + view.getUint16(at + 2)) {
    if (view.getUint8(at) !== 0xff) return undefined;
    const marker = view.getUint8(at + 1);
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker))
      return { width: view.getUint16(at + 7), height: view.getUint16(at + 5) };
  }
}

/** https://developers.google.com/speed/webp/docs/riff_container: lossy, lossless, extended. */
function webpSize(view: DataView): PixelSize | undefined {
  const chunk = String.fromCharCode(...[12, 13, 14, 15].map(at => view.getUint8(at)));
  if (chunk === "VP8 ") return { width: view.getUint16(26, true) & 0x3fff, height: view.getUint16(28, true) & 0x3fff };
  if (chunk === "VP8L") {
    const bits = view.getUint32(21, true);
    return { width: (bits & 0x3fff) + 1, height: ((bits >> 14) & 0x3fff) + 1 };
  }
  const three = (at: number) => view.getUint16(at, true) + (view.getUint8(at + 2) << 16);
  return chunk === "VP8X" ? { width: three(24) + 1, height: three(27) + 1 } : undefined;
}
