/**
 * Puts a text into a finished picture file, where A1111 looks for its parameters: a PNG text chunk, else EXIF's UserComment. sharp's own EXIF
 * writer reduces text to ASCII.
 */
import { crc32 } from "node:zlib";
import type { PictureFormat } from "../../shared/picture.ts";

const embedders = { png: embedInPng, jpeg: embedInJpeg, webp: embedInWebp } as const satisfies Record<
  PictureFormat,
  (file: Buffer, comment: string) => Buffer
>;

/** @param file as sharp writes it; a WebP file has to have the extended header, which XMP brings with it */
export function embedComment(file: Buffer, format: PictureFormat, comment: string): Buffer {
  return embedders[format](file, comment);
}

const pngSignature = 8;
const pngHeader = 25;

/** An iTXt chunk "parameters" behind IHDR (PNG, third edition, 11.3.3.4), whose text has no NUL. */
function embedInPng(file: Buffer, comment: string): Buffer {
  const body = Buffer.from(`iTXtparameters\0\0\0\0\0${comment.replaceAll("\0", "")}`, "utf8");
  const chunk = Buffer.alloc(body.length + 8);
  chunk.writeUInt32BE(body.length - 4, 0);
  body.copy(chunk, 4);
  chunk.writeUInt32BE(crc32(body), body.length + 4);
  const start = pngSignature + pngHeader;
  return Buffer.concat([file.subarray(0, start), chunk, file.subarray(start)]);
}

/** The most that a JPEG segment holds besides its length and the mark "Exif\0\0". */
const maxJpegExif = 65_535 - 2 - 6;

/** An APP1 segment behind the start of the image. A comment too long for a segment is left to XMP. */
function embedInJpeg(file: Buffer, comment: string): Buffer {
  const exif = exifWithComment(comment);
  if (exif.length > maxJpegExif) return file;
  const head = Buffer.from([0xff, 0xe1, 0, 0, ...Buffer.from("Exif\0\0", "latin1")]);
  head.writeUInt16BE(exif.length + 8, 2);
  return Buffer.concat([file.subarray(0, 2), head, exif, file.subarray(2)]);
}

/** Offset of VP8X's flags: behind "RIFF", size, "WEBP", "VP8X" and the chunk's size. */
const webpFlags = 20;
const webpHasExif = 0x08;

/** An EXIF chunk before the XMP one, which is the order that the container asks for. */
function embedInWebp(file: Buffer, comment: string): Buffer {
  const at = file.lastIndexOf("XMP ", undefined, "latin1");
  if (file.toString("latin1", 12, 16) !== "VP8X" || at < 0) throw new Error("webp: expected an extended file with an XMP chunk");
  const exif = exifWithComment(comment);
  const head = Buffer.from("EXIF\0\0\0\0", "latin1");
  head.writeUInt32LE(exif.length, 4);
  const result = Buffer.concat([file.subarray(0, at), head, exif, Buffer.alloc(exif.length % 2), file.subarray(at)]);
  result.writeUInt32LE(result.length - 8, 4);
  result[webpFlags]! |= webpHasExif;
  return result;
}

/** A big-endian TIFF block: IFD 0 holds a pointer to the Exif IFD, which holds UserComment in UTF-16 (EXIF 2.32, 4.6.5). */
function exifWithComment(comment: string): Buffer {
  const text = Buffer.concat([Buffer.from("UNICODE\0", "latin1"), Buffer.from(comment, "utf16le").swap16()]);
  const [exifStart, textStart] = [26, 44];
  const block = Buffer.alloc(textStart);
  block.write("MM\0*", "latin1");
  block.writeUInt32BE(8, 4);
  writeDirectory(block, 8, { tag: 0x8769, type: 4, count: 1, value: exifStart });
  writeDirectory(block, exifStart, { tag: 0x9286, type: 7, count: text.length, value: textStart });
  return Buffer.concat([block, text]);
}

/** A TIFF directory of one entry and no successor: 18 bytes. */
function writeDirectory(block: Buffer, at: number, entry: { tag: number; type: number; count: number; value: number }): void {
  block.writeUInt16BE(1, at);
  block.writeUInt16BE(entry.tag, at + 2);
  block.writeUInt16BE(entry.type, at + 4);
  block.writeUInt32BE(entry.count, at + 6);
  block.writeUInt32BE(entry.value, at + 10);
}
