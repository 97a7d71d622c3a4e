import { expect } from "vitest";
import { type AdapterView, adapterViewSchema } from "../../shared/adapter-resource.ts";
import { type UploadView, uploadViewSchema } from "../../shared/upload.ts";
import { pngFile } from "./file-bytes.ts";
import { call } from "./support.ts";

export * from "./file-bytes.ts";

export async function uploadPicture(key: string, bytes = pngFile()): Promise<UploadView> {
  const answer = await call("/v1/uploads", { method: "POST", key, body: bytes, headers: { "content-type": "image/png" } });
  const body: unknown = await answer.json();
  expect(answer.status, JSON.stringify(body)).toBe(201);
  return uploadViewSchema.parse(body);
}

/** Posts a form with one file that has to be taken. */
export async function uploadAdapter(
  key: string,
  name: string,
  bytes: Uint8Array<ArrayBuffer>,
  fields: Readonly<Record<string, string>> = {},
): Promise<AdapterView> {
  const answer = await postAdapter(key, name, bytes, fields);
  const body: unknown = await answer.json();
  expect([200, 201], JSON.stringify(body)).toContain(answer.status);
  return adapterViewSchema.parse(body);
}

export function postAdapter(
  key: string,
  name: string,
  bytes: Uint8Array<ArrayBuffer>,
  fields: Readonly<Record<string, string>> = {},
): Promise<Response> {
  const form = new FormData();
  form.set("name", name);
  for (const [field, value] of Object.entries(fields)) form.set(field, value);
  form.set("file", new File([bytes], `${name}.safetensors`));
  return call("/v1/adapters", { method: "POST", key, body: form });
}
