import { adapterKinds, preprocessors } from "./adapter-kinds.js";
import { byId, icon, make } from "./dom.js";
import { asField, slider, tick } from "./fields.js";
import { misfitOf } from "./library.js";
import { pictureField } from "./picture-field.js";

/** @typedef {import("./api.js").Adapter} Adapter */
/** @typedef {import("./api.js").Model} Model */
/** @typedef {Partial<NonNullable<import("./api.js").GenerationRequest["adapters"]>[number]>} Setting */
/** An adapter in the request: what is known of it, and its settings. @typedef {{ adapter: Adapter, setting: Setting }} Use */
/** Makes the control of one setting. @typedef {(name: string, use: Use) => HTMLElement} SettingControl */

/** @type {Use[]} */
let uses = [];
/** @type {() => Model | undefined} */
let chosenModel = () => undefined;

/** @param {() => Model | undefined} model */
export function setUpAdapters(model) {
  chosenModel = model;
  showAdapters();
}

/** @param {Adapter} adapter */
export function addAdapter(adapter) {
  /** @type {Setting} */
  const setting = adapter.kind === "textual-inversion" && adapter.token ? { token: adapter.token } : {};
  uses.push({ adapter, setting });
  byId("adapters", HTMLDetailsElement).open = true;
  showAdapters();
}

/** @param {string} id of an adapter that is gone */
export function forgetAdapter(id) {
  uses = uses.filter(({ adapter }) => adapter.id !== id);
  showAdapters();
}

/** @returns {{ adapters?: import("./api.js").GenerationRequest["adapters"] }} */
export function readAdapters() {
  if (uses.length === 0) return {};
  return { adapters: uses.map(({ adapter, setting }) => ({ adapter: adapter.id, ...setting })) };
}

/**
 * Shows the adapters of an earlier request. Those that are gone are left out.
 * @param {import("./api.js").GenerationRequest} request
 * @param {(id: string) => Adapter | undefined} find
 * @returns {string[]} names of those that are gone
 */
export function fillAdapters({ adapters = [] }, find) {
  const found = adapters.map(({ adapter: id, name, version: _version, hash: _hash, kind: _kind, ...setting }) => ({
    adapter: find(id),
    id,
    name,
    setting,
  }));
  uses = found.flatMap(({ adapter, setting }) => (adapter ? [{ adapter, setting: stated(setting) }] : []));
  if (uses.length > 0) byId("adapters", HTMLDetailsElement).open = true;
  showAdapters();
  return found.filter(({ adapter }) => !adapter).map(({ name, id }) => name ?? id);
}

/** @param {Setting} setting */
function stated(setting) {
  return Object.fromEntries(Object.entries(setting).filter(([, value]) => value !== null));
}

/** Shows the adapters of the request, each with the settings of its kind. */
export function showAdapters() {
  byId("adapter-uses", HTMLElement).replaceChildren(...uses.map(card));
  byId("adapter-count", HTMLElement).textContent = uses.length > 0 ? String(uses.length) : "";
}

/**
 * @param {Use} use
 * @param {number} index
 */
function card(use, index) {
  const { adapter } = use;
  const name = `adapters.${index}`;
  const remove = make(
    "button",
    { type: "button", className: "icon-button", title: "Remove", ariaLabel: `Remove ${adapter.name}` },
    icon("close"),
  );
  remove.addEventListener("click", () => {
    uses = uses.filter(other => other !== use);
    showAdapters();
    byId("open-library", HTMLButtonElement).focus();
  });
  const kind = adapter.kind ? adapterKinds[adapter.kind] : { title: "Adapter", settings: [] };
  const misfit = misfitOf(adapter, chosenModel());
  const head = asField(
    `${name}.adapter`,
    make(
      "div",
      { className: "use-head" },
      make("strong", {}, adapter.name),
      make("span", { className: "hint" }, `${kind.title}, version ${adapter.version}`),
      remove,
    ),
  );
  if (misfit) head.append(make("p", { className: "error" }, misfit));
  remove.dataset.control = "";
  const settings = kind.settings.filter(setting => applies(setting, kind.settings, adapter.manifest?.layout ?? ""));
  const fields = settings.map(setting => controls[/** @type {keyof typeof controls} */ (setting)](`${name}.${setting}`, use));
  const item = make("li", { className: "use" }, head, make("div", { className: "pair" }, ...fields));
  item.dataset.field = name;
  return item;
}

/**
 * Whether a setting says something for an adapter of this layout.
 * @param {keyof Setting} setting
 * @param {readonly (keyof Setting)[]} settings of its kind
 * @param {string} layout
 */
function applies(setting, settings, layout) {
  // One picture is the first of several: a field of its own would ask for the same twice.
  if (setting === "image") return !settings.includes("images");
  if (setting === "embedding") return layout.startsWith("faceid");
  if (setting === "images") return layout !== "faceid";
  if (setting === "shortcut") return layout === "faceid-plus";
  return setting !== "control_mode" || layout.endsWith("union");
}

/**
 * @param {keyof Setting} key
 * @param {string} label
 * @param {{ step: number, placeholder: string, min?: number, max?: number }} bounds
 * @returns {SettingControl}
 */
function number(key, label, { step, placeholder, min, max }) {
  return (name, { setting }) => {
    const input = make("input", {
      type: "number",
      id: name,
      name,
      step: String(step),
      placeholder,
      inputMode: "decimal",
      value: String(setting[key] ?? ""),
    });
    if (min !== undefined) input.min = String(min);
    if (max !== undefined) input.max = String(max);
    input.addEventListener("input", () => put(setting, key, input.value === "" ? undefined : Number(input.value)));
    return asField(name, make("label", { htmlFor: name }, label), input);
  };
}

/**
 * @param {keyof Setting} key
 * @param {string} label
 * @param {Record<string, string>} choices by value; "" leaves the setting out
 * @returns {SettingControl}
 */
function choice(key, label, choices) {
  return (name, { setting }) => {
    const select = make("select", { id: name, name }, ...Object.entries(choices).map(([value, title]) => new Option(title, value)));
    select.value = String(setting[key] ?? Object.keys(choices)[0]);
    select.addEventListener("change", () => put(setting, key, select.value || undefined));
    return asField(name, make("label", { htmlFor: name }, label), select);
  };
}

/**
 * @param {keyof Setting} key
 * @param {string} label
 * @returns {SettingControl}
 */
function flag(key, label) {
  return (name, { setting }) => wide(tick(name, label, setting[key] === true, checked => put(setting, key, checked || undefined)));
}

/**
 * @param {keyof Setting} key
 * @param {string} label
 * @param {string} hint
 * @param {"picture" | "embedding"} [accepts]
 * @returns {SettingControl}
 */
function file(key, label, hint, accepts = "picture") {
  return (name, { setting }) => {
    const field = pictureField(name, label, { hint, accepts, onChange: input => put(setting, key, input?.id) });
    const id = setting[key];
    if (typeof id === "string") void field.show(id);
    return wide(field.element);
  };
}

/** @type {SettingControl} */
function weight(name, { setting }) {
  return wide(slider(name, "Weight", { from: -1, to: 2, step: 0.05, value: setting.weight ?? 1 }, value => put(setting, "weight", value)));
}

/** How the control map is made, which no picture shows before the drawing. @type {SettingControl} */
function preprocess(name, use) {
  const field = choice("preprocess", "Control map", preprocessors)(name, use);
  const hint = make("p", { className: "hint" });
  const say = () => {
    const by = use.setting.preprocess ?? "none";
    hint.textContent = by === "none" ? "The picture is taken as it is." : `${by} makes the map of the picture when it is drawn.`;
  };
  field.addEventListener("change", say);
  field.append(hint);
  say();
  return wide(field);
}

/** @type {SettingControl} */
function token(name, { adapter, setting }) {
  const input = make("input", { id: name, name, value: setting.token ?? adapter.token ?? "" });
  input.addEventListener("input", () => put(setting, "token", input.value || undefined));
  const insert = make("button", { type: "button", className: "link-button" }, "Put it into the prompt");
  insert.addEventListener("click", () => {
    const prompt = byId("prompt", HTMLTextAreaElement);
    prompt.value = `${prompt.value.trimEnd()} ${input.value}`.trimStart();
    prompt.focus();
  });
  const hint = make("p", { className: "hint" }, "It works where the prompt has this word. ", insert);
  return wide(asField(name, make("label", { htmlFor: name }, "Word"), input, hint));
}

/** Reference pictures, each with its share. @type {SettingControl} */
function references(name, { setting }) {
  const { image, images = image ? [{ image, weight: 1 }] : [] } = setting;
  setting.image = undefined;
  const shown = [...images, null].slice(0, 16);
  const rows = shown.map((reference, i) => {
    const field = pictureField(`${name}.${i}.image`, `Reference ${i + 1}`, {
      hint: "A picture to take after",
      onChange: input => {
        const id = input?.id;
        if (id === reference?.image) return;
        const before = setting.images ?? images;
        const after = id
          ? [...before.slice(0, i), { image: id, weight: reference?.weight ?? 1 }, ...before.slice(i + 1)]
          : before.filter((_, other) => other !== i);
        put(setting, "images", after.length > 0 ? after : undefined);
        showAdapters();
      },
    });
    if (!reference) return field.element;
    void field.show(reference.image);
    const share = slider(
      `${name}.${i}.weight`,
      `Share of reference ${i + 1}`,
      { from: 0, to: 2, step: 0.05, value: reference.weight ?? 1 },
      value => {
        reference.weight = value;
      },
    );
    return make("div", { className: "reference" }, field.element, share);
  });
  if (images.length > 0) put(setting, "images", images);
  return wide(asField(name, ...rows));
}

/**
 * Over both columns.
 * @param {HTMLElement} element
 */
function wide(element) {
  element.classList.add("wide");
  return element;
}

/**
 * @param {Setting} setting
 * @param {keyof Setting} key
 * @param {unknown} value undefined takes it away
 */
function put(setting, key, value) {
  if (value === undefined) delete setting[key];
  else Object.assign(setting, { [key]: value });
}

const share = { step: 0.05, min: 0, max: 1 };
/** How each setting is made. */
const controls = {
  weight,
  token,
  images: references,
  start: number("start", "From", { ...share, placeholder: "0" }),
  end: number("end", "Until", { ...share, placeholder: "1" }),
  text_encoder_weight: number("text_encoder_weight", "Text weight", { step: 0.05, placeholder: "the weight" }),
  control_mode: number("control_mode", "Control of a union", { step: 1, min: 0, max: 31, placeholder: "none" }),
  dora: choice("dora", "DoRA", { "": "as its file says", peft: "PEFT", interpolate: "interpolate" }),
  preprocess,
  guess_mode: flag("guess_mode", "Guess mode: works without a prompt"),
  shortcut: flag("shortcut", "Second version of FaceID-plus"),
  global_pool: flag("global_pool", "Average its residuals over the picture"),
  image: file("image", "Control picture", "A control map, or a picture to make it of"),
  mask: file("mask", "Where it works", "White where it works; everywhere where absent"),
  embedding: file("embedding", "Face embedding", "A safetensors file, for FaceID", "embedding"),
};
