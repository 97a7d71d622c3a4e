import { AtelierError, type FieldError } from "../shared/errors.ts";
import { type AdapterSetting, type GenerationRequest, MAX_ADAPTERS, type PictureOverrides } from "../shared/generation.ts";
import { adapterNameSchema } from "../shared/names.ts";
import type { PromptSyntax } from "../shared/picture.ts";
import { nameOfFile } from "./adapter-uploads.ts";

/**
 * A1111's way to name adapters inside a prompt: <lora:name>, <lora:name:weight>, <lora:name:text encoder weight:UNet weight> (also te=… and unet=…),
 * <lyco:…>, which is the same, and <hypernet:name:weight>. https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#extra-networks
 */
const tagPattern = /<(lora|lyco|hypernet):([^<>]*)>/g;
const kinds = { lora: "lora", lyco: "lora", hypernet: "hypernetwork" } as const;
const numberPattern = /^[+-]?(\d+(\.\d*)?|\.\d+)$/;
const MOST = 10;

/** A request whose adapters all stand in `adapters`; and of those that were tags, by name, the field of the prompt. */
export interface Untagged {
  readonly request: GenerationRequest;
  readonly tags: ReadonlyMap<string, string>;
}

/**
 * Moves the tags of prompts in A1111's syntax behind the adapters that the request names. A picture with a prompt of its own has that one's tags.
 * In other syntaxes the text stays as it is.
 * @throws AtelierError invalid_request with the prompt's field where a tag is malformed, or nothing is left besides tags
 */
export function moveTags(request: GenerationRequest): Untagged {
  const errors: FieldError[] = [];
  const tags = new Map<string, string>();
  const read = (prompt: string, syntax: PromptSyntax, explicit: readonly AdapterSetting[], field: string) => {
    const found = syntax === "a1111" ? readTags(prompt) : { text: prompt, settings: [], errors: [] };
    const adapters = [...explicit, ...found.settings];
    errors.push(...found.errors.map(error => ({ field, ...error })));
    if (found.text.trim() === "" && prompt.trim() !== "")
      errors.push({ field, expected: "text besides the tags", got: prompt.slice(0, 60) });
    if (adapters.length > MAX_ADAPTERS && found.settings.length > 0)
      errors.push({ field, expected: `at most ${MAX_ADAPTERS} adapters, tags counted`, got: String(adapters.length) });
    for (const { adapter } of found.settings) if (!tags.has(adapter)) tags.set(adapter, field);
    return { prompt: found.text, adapters };
  };
  const base = read(request.prompt, request.prompt_syntax, request.adapters, "prompt");
  const pictures = request.per_image.map((own, i): PictureOverrides => {
    if (own.prompt === undefined && own.prompt_syntax === undefined && own.adapters === undefined) return own;
    const field = own.prompt === undefined ? "prompt" : `per_image.${i}.prompt`;
    const picture = read(own.prompt ?? request.prompt, own.prompt_syntax ?? request.prompt_syntax, own.adapters ?? request.adapters, field);
    return {
      ...own,
      ...((own.prompt !== undefined || picture.prompt !== base.prompt) && { prompt: picture.prompt }),
      ...((own.adapters || picture.adapters.length + base.adapters.length > 2 * request.adapters.length) && { adapters: picture.adapters }),
    };
  });
  if (errors.length > 0) throw new AtelierError("invalid_request", undefined, { errors });
  return { request: { ...request, ...base, per_image: pictures }, tags };
}

interface Read {
  readonly text: string;
  readonly settings: AdapterSetting[];
  readonly errors: Omit<FieldError, "field">[];
}

/** The prompt without its tags, and what these ask for. */
function readTags(prompt: string): Read {
  const settings: AdapterSetting[] = [];
  const errors: Read["errors"] = [];
  const text = prompt.replaceAll(tagPattern, (tag, network: keyof typeof kinds, content: string) => {
    const setting = readTag(kinds[network], content);
    if (setting) settings.push(setting);
    else errors.push({ expected: `<${network}:name:weight> with weights from -${MOST} to ${MOST}`, got: tag.slice(0, 100) });
    return "";
  });
  return { text, settings, errors };
}

function readTag(kind: "lora" | "hypernetwork", content: string): AdapterSetting | undefined {
  const parts = content.split(":").map(part => part.trim());
  const [name = "", ...positional] = parts.filter(part => !part.includes("="));
  const named = new Map(parts.flatMap(part => (part.includes("=") ? [part.split("=", 2) as [string, string]] : [])));
  const te = named.get("te") ?? positional[0] ?? "1";
  const unet = named.get("unet") ?? positional[1] ?? positional[0] ?? te;
  const [weight, text_encoder_weight] = [unet, te].map(Number);
  const valid = [te, unet, ...positional].every(text => numberPattern.test(text) && Math.abs(Number(text)) <= MOST);
  const known = [...named.keys()].every(key => kind === "lora" && (key === "te" || key === "unet"));
  if (name === "" || !valid || !known || positional.length > (kind === "lora" ? 2 : 1)) return undefined;
  return { adapter: referenceOf(name), kind, weight, ...(kind === "lora" && { text_encoder_weight }) };
}

/** A1111 calls an adapter as its file; so do uploads that state no name, in the characters that names have. */
function referenceOf(name: string): string {
  return adapterNameSchema.safeParse(name).success ? name : nameOfFile(`${name}.safetensors`);
}
