import { type AdapterKind, imageEncoderLayout } from "../shared/adapter.ts";
import { adapterFits } from "../shared/adapter-fit.ts";
import type { FieldError } from "../shared/errors.ts";
import { type AdapterSetting, adapterSettings } from "../shared/generation.ts";
import type { ModelManifest } from "../shared/model.ts";
import type { AdapterUse } from "../shared/picture.ts";
import type { ReadyAdapter, ReadyAdapters } from "./adapters.ts";
import type { InputFile } from "./inputs.ts";

/** What the adapters of a picture are resolved against. */
export interface AdapterContext {
  readonly model: ModelManifest;
  readonly inputs: ReadonlyMap<string, InputFile>;
  readonly adapters: ReadyAdapters;
}

type Use<K extends AdapterKind> = Extract<AdapterUse, { kind: K }>;
/** Collects what is wrong, and finds input files by id. */
interface Check {
  wrong(setting: string, expected: string, got: unknown): void;
  picture(setting: string, id: string | null | undefined): string;
  embedding(id: string): string;
}
type Build<K extends AdapterKind> = (setting: AdapterSetting, adapter: ReadyAdapter, check: Check) => Use<K>;

function span({ weight = 1, start = 0, end = 1 }: AdapterSetting, check: Check) {
  if (start >= end) check.wrong("end", `more than the start, ${start}`, end);
  return { weight, start, end };
}

/** The use of each kind, with the defaults of its settings filled in. */
const builds = {
  lora: (setting, { manifest }, check) => {
    const { weight, start, end } = span(setting, check);
    const { text_encoder_weight = weight, dora = null } = setting;
    return { kind: "lora", adapter: manifest.hash, weight, start, end, text_encoder_weight, dora };
  },
  "textual-inversion": ({ token }, adapter) => ({
    kind: "textual-inversion",
    adapter: adapter.manifest.hash,
    token: token ?? adapter.token,
  }),
  hypernetwork: (setting, { manifest }, check) => ({ kind: "hypernetwork", adapter: manifest.hash, ...span(setting, check) }),
  "ip-adapter": (setting, { manifest }, check) => {
    const { image, images = [], embedding, mask, shortcut = false } = setting;
    const references = [...(image === undefined ? [] : [{ image, weight: 1 }]), ...images];
    if (manifest.layout === imageEncoderLayout)
      check.wrong("adapter", "an IP-Adapter; an image encoder alone is for settings.image_encoder of a training", manifest.hash);
    if (references.length === 0 && !embedding)
      check.wrong("images", "a reference picture, or the embedding of a FaceID adapter", undefined);
    return {
      ...{ kind: "ip-adapter", adapter: manifest.hash },
      ...span(setting, check),
      images: references.map(reference => ({ ...reference, image: check.picture("images", reference.image) })),
      embedding: embedding ? check.embedding(embedding) : null,
      mask: mask ? check.picture("mask", mask) : null,
      shortcut,
    };
  },
  controlnet: (setting, { manifest }, check) => ({
    ...{ kind: "controlnet", adapter: manifest.hash },
    ...span(setting, check),
    ...controlOf(setting, check),
    guess_mode: setting.guess_mode ?? false,
    global_pool: setting.global_pool ?? false,
    control_mode: setting.control_mode ?? null,
  }),
  "t2i-adapter": (setting, { manifest }, check) => ({
    ...{ kind: "t2i-adapter", adapter: manifest.hash },
    ...span(setting, check),
    ...controlOf(setting, check),
  }),
} as const satisfies { [K in AdapterKind]: Build<K> };

function controlOf({ image, preprocess = "none" }: AdapterSetting, check: Check) {
  return { image: check.picture("image", image), preprocess };
}

/** Adapters of one picture as a runner gets them, as answers show them, and what is wrong with them. `field` is where they stand. */
export interface UsedAdapters {
  readonly uses: AdapterUse[];
  readonly settings: AdapterSetting[];
  readonly errors: FieldError[];
}

export function useAdapters(settings: readonly AdapterSetting[], field: string, context: AdapterContext): UsedAdapters {
  const used = settings.map((setting, i) => useAdapter(setting, `${field}.${i}`, context));
  return {
    uses: used.map(({ use }) => use),
    settings: used.map(({ setting }) => setting),
    errors: used.flatMap(({ errors }) => errors),
  };
}

function useAdapter(setting: AdapterSetting, field: string, context: AdapterContext) {
  const adapter = context.adapters.get(setting.adapter)!;
  const { kind, hash } = adapter.manifest;
  const errors: FieldError[] = [...statementErrors(setting, adapter, field), ...settingErrors(setting, kind, field)];
  const misfit = adapterFits(adapter.manifest, context.model);
  if (misfit !== null) {
    const [expected, got] = misfit.replace(/^expected /, "").split(", got ");
    errors.push({ field: `${field}.adapter`, expected: expected!, ...(got !== undefined && { got }) });
  }
  const build: Build<AdapterKind> = builds[kind];
  const use = build(setting, adapter, checks(field, context.inputs, errors));
  const { kind: _kind, adapter: _hash, ...filled } = use;
  const { id, name, version } = adapter;
  return { use, setting: { adapter: id, name, version, hash, kind, ...shown(setting, filled) }, errors };
}

/** The filled settings, with files by the ids that the request names instead of by hash. */
function shown({ image, images, embedding, mask }: AdapterSetting, filled: object): Partial<AdapterSetting> {
  return {
    ...filled,
    ...(image !== undefined && { image }),
    ...("images" in filled && { images: images ?? (image === undefined ? undefined : [{ image, weight: 1 }]), image: undefined }),
    ...(embedding && { embedding }),
    ...(mask && { mask }),
  };
}

/** What a request says of the adapter has to hold. */
function statementErrors(setting: AdapterSetting, { id, name, version, manifest }: ReadyAdapter, field: string): FieldError[] {
  const facts = { name, version, hash: manifest.hash, kind: manifest.kind };
  return (["name", "version", "hash", "kind"] as const)
    .filter(fact => setting[fact] !== undefined && setting[fact] !== facts[fact])
    .map(fact => ({ field: `${field}.${fact}`, expected: `${facts[fact]}, as the adapter ${id} is`, got: JSON.stringify(setting[fact]) }));
}

const statements = ["adapter", "name", "version", "hash", "kind"];

function settingErrors(setting: AdapterSetting, kind: AdapterKind, field: string): FieldError[] {
  const known: readonly string[] = [...statements, ...adapterSettings[kind]];
  return Object.entries(setting)
    .filter(([name, value]) => value !== undefined && !known.includes(name))
    .map(([name, value]) => ({
      field: `${field}.${name}`,
      expected: `a setting of ${kind}: ${adapterSettings[kind].join(", ")}`,
      got: JSON.stringify(value),
    }));
}

function checks(field: string, inputs: ReadonlyMap<string, InputFile>, errors: FieldError[]): Check {
  const wrong: Check["wrong"] = (setting, expected, got) =>
    void errors.push({ field: `${field}.${setting}`, expected, got: got === undefined ? "nothing" : JSON.stringify(got) });
  const find = (setting: string, id: string | null | undefined, expected: string, fits: (mediaType: string) => boolean) => {
    const file = inputs.get(id ?? "");
    if (!file || !fits(file.mediaType)) wrong(setting, expected, file ? file.mediaType : undefined);
    return file?.sha256 ?? "";
  };
  return {
    wrong,
    picture: (setting, id) => find(setting, id, "a picture", type => type.startsWith("image/")),
    embedding: id => find("embedding", id, "a safetensors file", type => type === "application/x-safetensors"),
  };
}
