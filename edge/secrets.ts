import { toHex } from "../shared/canonical.ts";

const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const encoder = new TextEncoder();

/** Evenly distributed random base62 digits; 30 of them are 178 bits. */
export function randomBase62(length: number): string {
  const digits: string[] = [];
  while (digits.length < length) {
    // 248 is the greatest multiple of 62 below 256: larger bytes would favour the first digits.
    for (const byte of crypto.getRandomValues(new Uint8Array(length)))
      if (byte < 248 && digits.length < length) digits.push(alphabet[byte % 62]!);
  }
  return digits.join("");
}

/** CRC-32 (IEEE 802.3) of a text as six base62 digits: tells a mistyped key from an unknown one without a look into the database. */
export function checksumBase62(text: string): string {
  let crc = 0xffffffff;
  for (const byte of encoder.encode(text)) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  let rest = (crc ^ 0xffffffff) >>> 0;
  const digits: string[] = [];
  for (let i = 0; i < 6; i++, rest = Math.floor(rest / 62)) digits.unshift(alphabet[rest % 62]!);
  return digits.join("");
}

/** HMAC-SHA-256. */
export async function hmac(key: string, text: string): Promise<Uint8Array<ArrayBuffer>> {
  const imported = await crypto.subtle.importKey("raw", encoder.encode(key), { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return new Uint8Array(await crypto.subtle.sign("HMAC", imported, encoder.encode(text)));
}

/** A secret's hash under one pepper, as it is stored beside that pepper's id. */
export async function pepperedHash(
  peppers: Readonly<Record<string, string>>,
  pepperId: string,
  secret: string,
): Promise<string | undefined> {
  const pepper = peppers[pepperId];
  return pepper === undefined ? undefined : toHex(await hmac(pepper, secret));
}

/** A secret's hash under the newest pepper, which is the last one. */
export async function newPepperedHash(
  peppers: Readonly<Record<string, string>>,
  secret: string,
): Promise<{ hash: string; pepper_id: string }> {
  const [pepper_id, pepper] = Object.entries(peppers).at(-1) ?? [];
  if (pepper_id === undefined || pepper === undefined) throw new Error("PEPPERS names no pepper");
  return { hash: toHex(await hmac(pepper, secret)), pepper_id };
}

/** Compares secrets in a time that depends on neither: their hashes under a random key are what is compared. */
export async function equalSecrets(a: string, b: string): Promise<boolean> {
  const key = randomBase62(32);
  const [left, right] = await Promise.all([hmac(key, a), hmac(key, b)]);
  return left.every((byte, i) => byte === right[i]);
}
