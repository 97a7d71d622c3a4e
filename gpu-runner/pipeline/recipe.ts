/** How a picture was made, in the words of other tools: A1111's parameter text, and XMP with IPTC's mark of generated pictures. */
import { canonicalPictureRequest, type PictureRequest } from "../../shared/picture.ts";
import { samplerTraits, sigmaScheduleTraits } from "../../shared/samplers.ts";

/** IPTC's term for pictures made by a trained model. */
export const digitalSourceType = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia";

/** What A1111 calls the noise sources. */
const generatorNames = { philox: "NV", mt19937: "CPU" } as const satisfies Record<PictureRequest["noise_source"], string>;

/** The text that A1111 and its relatives read back: prompt, negative prompt, a line of settings. Hashes are cut to ten digits as theirs. */
export function recipeText(request: PictureRequest): string {
  const { prompt, negative_prompt: negativePrompt, sampler_options: options } = request;
  const { schedule, ...samplerOptions } = options;
  const settings = {
    Steps: request.steps,
    Sampler: samplerTraits[request.sampler].title,
    ...(schedule && { "Schedule type": sigmaScheduleTraits[schedule].title }),
    "CFG scale": request.guidance_scale,
    ...(request.guidance_rescale > 0 && { "CFG Rescale": request.guidance_rescale }),
    Seed: request.seed,
    Size: `${request.width}x${request.height}`,
    "Model hash": shortHash(request.model),
    ...promptSettings(request),
    ...passSettings(request),
    ...adapterSettings(request.adapters),
    RNG: generatorNames[request.noise_source],
    ...samplerOptions,
    Version: `Atelier engine ${request.engine_version}`,
  };
  const line = Object.entries(settings)
    .map(([name, value]) => `${name}: ${value}`)
    .join(", ");
  return [prompt, ...(negativePrompt ? [`Negative prompt: ${negativePrompt}`] : []), line].join("\n");
}

type Settings = Record<string, string | number>;

/** A1111 counts clip skip from 1. */
function promptSettings(request: PictureRequest): Settings {
  const { clip_skip: clipSkip, prompt_2: second, negative_prompt_2: secondNegative, variation } = request;
  const { guidance_start: start, guidance_end: end, image_guidance_scale: imageScale, micro_conditioning: micro } = request;
  return {
    ...(clipSkip > 0 && { "Clip skip": clipSkip + 1 }),
    // What another tool would read as weights is text.
    ...(request.prompt_syntax === "plain" && { Emphasis: "None" }),
    ...(second !== null && { "Prompt 2": JSON.stringify(second) }),
    ...(secondNegative !== null && { "Negative prompt 2": JSON.stringify(secondNegative) }),
    ...(variation && { "Variation seed": variation.seed, "Variation seed strength": variation.strength }),
    ...((start > 0 || end < 1) && { "CFG interval": `${start}-${end}` }),
    ...(imageScale !== null && { "Image CFG scale": imageScale }),
    ...(micro && { "Micro conditioning": JSON.stringify(JSON.stringify(micro)) }),
  };
}

function passSettings({ source, mask, outpaint, upscale, refiner, tiled_vae: tiled }: PictureRequest): Settings {
  return {
    ...(source && { "Denoising strength": source.strength, "Source hash": source.image.slice(0, 10) }),
    ...(mask && { "Mask hash": mask.image.slice(0, 10), "Mask blur": mask.blur, "Masked content": mask.fill }),
    ...(mask?.padding_crop != null && { "Masked area padding": mask.padding_crop }),
    ...(outpaint && { Outpaint: `left ${outpaint.left} right ${outpaint.right} top ${outpaint.top} bottom ${outpaint.bottom}` }),
    ...(upscale && {
      "Hires upscale": upscale.scale,
      "Hires steps": upscale.steps,
      "Hires upscaler": upscale.mode === "latent" ? "Latent" : "Lanczos",
      // A1111 has one strength; a source's stands before it.
      [source ? "Hires denoising strength" : "Denoising strength"]: upscale.strength,
    }),
    ...(refiner && { Refiner: shortHash(refiner.model), "Refiner switch at": refiner.switch_at }),
    ...(tiled && { "Tiled VAE": "true" }),
  };
}

/** Each use with its hash and all its settings, such as `Adapter 0: "lora 5a5a5a5a5a, weight: 0.8, …"`. */
function adapterSettings(adapters: PictureRequest["adapters"]): Settings {
  const entries = adapters.map(({ kind, adapter, ...settings }, i) => {
    const written = Object.entries(settings).map(
      ([name, value]) => `${name}: ${typeof value === "object" ? JSON.stringify(value) : value}`,
    );
    return [`Adapter ${i}`, JSON.stringify([`${kind} ${shortHash(adapter)}`, ...written].join(", "))];
  });
  return Object.fromEntries(entries);
}

function shortHash(hash: string): string {
  return hash.replace("sha256:", "").slice(0, 10);
}

/** The most bytes of XMP that a JPEG segment holds. Encoders drop a longer packet silently, and with it IPTC's mark. */
const maxXmpBytes = 65_000;

/** An XMP packet with the digital source type and, where it fits, the whole canonical request as JSON. */
export function recipeXmp(request: PictureRequest): string {
  const whole = xmpPacket(request, { "atelier:Request": canonicalPictureRequest(request) });
  return Buffer.byteLength(whole) <= maxXmpBytes ? whole : xmpPacket(request, {});
}

function xmpPacket(request: PictureRequest, more: Readonly<Record<string, string>>): string {
  const attributes = {
    "xmlns:xmp": "http://ns.adobe.com/xap/1.0/",
    "xmlns:Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "xmlns:atelier": "urn:atelier:recipe",
    "xmp:CreatorTool": `Atelier engine ${request.engine_version}`,
    "Iptc4xmpExt:DigitalSourceType": digitalSourceType,
    ...more,
  };
  const written = Object.entries(attributes)
    .map(([name, value]) => ` ${name}="${escapeXml(value)}"`)
    .join("");
  return [
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>',
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">',
    `<rdf:Description rdf:about=""${written}/>`,
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>',
  ].join("");
}

/** For an attribute. Two code points that XML cannot hold occur only inside JSON strings, so JSON's escape serves. */
function escapeXml(text: string): string {
  const entities: Record<string, string> = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    '"': "&quot;",
    "\ufffe": "\\ufffe",
    "\uffff": "\\uffff",
  };
  return text.replace(/[&<>"\ufffe\uffff]/g, character => entities[character]!);
}
