/** How a picture was made, in the words of other tools: A1111's parameter text, and XMP with IPTC's mark of generated pictures. */
import { canonicalPictureRequest, type PictureRequest } from "../../shared/picture.ts";
import { samplerTraits, sigmaScheduleTraits } from "../../shared/samplers.ts";

/** IPTC's term for pictures made by a trained model. */
export const digitalSourceType = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia";

/** The text that A1111 and its relatives read back: prompt, negative prompt, a line of settings. The hash is cut to ten digits as theirs. */
export function recipeText(request: PictureRequest): string {
  const { schedule, ...options } = request.sampler_options;
  const settings = {
    Steps: request.steps,
    Sampler: samplerTraits[request.sampler].title,
    ...(schedule && { "Schedule type": sigmaScheduleTraits[schedule].title }),
    "CFG scale": request.guidance_scale,
    ...(request.guidance_rescale > 0 && { "CFG Rescale": request.guidance_rescale }),
    Seed: request.seed,
    Size: `${request.width}x${request.height}`,
    "Model hash": request.model.replace("sha256:", "").slice(0, 10),
    RNG: "NV",
    ...options,
    Version: `Atelier engine ${request.engine_version}`,
  };
  const line = Object.entries(settings)
    .map(([name, value]) => `${name}: ${value}`)
    .join(", ");
  return [request.prompt, ...(request.negative_prompt === "" ? [] : [`Negative prompt: ${request.negative_prompt}`]), line].join("\n");
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
