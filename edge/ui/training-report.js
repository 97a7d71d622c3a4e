import { onThisOrigin } from "./api.js";
import { duration, fileSize } from "./describe.js";
import { make } from "./dom.js";
import { count } from "./models.js";
import { getTraining } from "./training-api.js";
import { methods } from "./training-methods.js";

/** @typedef {import("./training-api.js").Training} Training */
/** @typedef {NonNullable<Training["report"]>} Report */
/** @typedef {NonNullable<Report["scores"]>} Scores */
/** @typedef {NonNullable<Scores["prior"]>} Score */

/** Whether a score is what one wants. @typedef {"good" | "bad" | "open"} Verdict */

/** @type {Record<keyof Scores, { title: string, about: string, text: (value: number) => string, verdict: (score: Score) => Verdict }>} */
const scores = {
  gain: {
    title: "Gain",
    about: "how much better held-out pictures are predicted",
    text: percent,
    verdict: ({ low, high }) => (low > 0 ? "good" : high < 0 ? "bad" : "open"),
  },
  binding: {
    title: "Binding",
    about: "how much of it hangs on the word",
    text: percent,
    verdict: ({ low, high }) => (low > 0 ? "good" : high < 0 ? "bad" : "open"),
  },
  prior: {
    title: "Prior",
    about: "loss on generic pictures against the base's: near 1, nothing was forgotten",
    text: value => value.toFixed(3),
    verdict: ({ value, low }) => (value <= 1.03 ? "good" : low > 1.03 ? "bad" : "open"),
  },
  drift: {
    title: "Drift",
    about: "how far pictures without the word have moved",
    text: value => value.toFixed(3),
    verdict: () => "open",
  },
};
/** @type {Record<Verdict, string>} */
const verdicts = { good: "as wanted", bad: "not as wanted", open: "" };

/** @param {number} value */
function percent(value) {
  return `${(100 * value).toFixed(1).replace(/^-(0\.0)$/, "$1")} %`;
}

/**
 * What one of the adapters that a training has made is called where there are several.
 * @param {Training} training
 * @param {number} index
 */
export function adapterTitle({ adapters, request: { concepts } }, index) {
  // One that could not be registered leaves no place in the list.
  return (adapters.length === concepts.length && concepts[index]?.token) || String(index + 1);
}

/** What ended a training, in words. @type {Record<Report["ended_by"], string>} */
const ends = { steps: "all were done", budget: "its budget was spent", deadline: "its deadline came", cancel: "it was canceled" };

/** What folders of results are called. @type {Record<string, string>} */
const layouts = {
  kohya: "kohya (A1111, ComfyUI)",
  diffusers: "diffusers",
  peft: "PEFT",
  lycoris: "LyCORIS: the full difference",
  a1111: "A1111",
  model: "the whole model",
  "single-file": "the whole model in one file",
  "hyper-lora": "the net that predicts",
  "ip-adapter": "IP-Adapter",
  controlnet: "ControlNet (diffusers)",
};

/** @param {Scores} found */
export function scoreTable(found) {
  const rows = Object.entries(scores).flatMap(([name, { title, about, text, verdict }]) => {
    const score = found[/** @type {keyof Scores} */ (name)];
    if (!score) return [];
    const judged = verdict(score);
    const mark = make("span", { className: `verdict ${judged}` }, verdicts[judged]);
    return [
      make(
        "tr",
        {},
        make("th", { scope: "row" }, title, make("span", { className: "hint" }, about)),
        make("td", {}, make("strong", {}, text(score.value)), " ", mark),
        make("td", {}, `${text(score.low)} to ${text(score.high)}`),
      ),
    ];
  });
  const heads = ["Score", "Value", "95 % interval"].map(title => make("th", { scope: "col" }, title));
  return make("table", { className: "scores" }, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
}

/**
 * What a training was and came to, as names and values.
 * @param {Training} training
 * @returns {[name: string, value: string][]}
 */
export function facts({ report, request, model, created_at, error }) {
  /** @type {[string, string | false | undefined | null][]} */
  const rows = [
    ["Method", methods[request.settings.method].title],
    ["Model", model],
    ["Words", request.concepts.map(({ token }) => token).join(", ")],
    ["Learning rate", String(request.optimizer.learning_rate)],
    ["Batch", `${request.batch_size}${request.accumulation > 1 ? ` × ${request.accumulation}` : ""} at ${request.resolution} px`],
    ["Seed", String(request.seed)],
    ["Steps", report && `${report.steps} of ${request.steps}: ${ends[report.ended_by]}`],
    ["Best at step", report && report.validation.length > 0 && String(report.best_step)],
    ["Time", report && `${duration(report.seconds)}, ${duration(report.seconds_per_step)} a step`],
    ["Samples and scores", report?.scoring_seconds !== undefined && duration(report.scoring_seconds)],
    ["Memory at most", report && fileSize(report.peak_memory_bytes)],
    ["Trained parameters", report && count(report.trained_parameters)],
    ["Pictures", report?.pictures && picturesLine(report.pictures)],
    ["Dataset hash", report?.dataset_hash],
    ["Error", error?.detail ?? error?.title],
    ["Begun", new Date(created_at).toLocaleString()],
  ];
  return rows.flatMap(([name, value]) => (value ? [/** @type {[string, string]} */ ([name, value])] : []));
}

/** @param {NonNullable<Report["pictures"]>} pictures */
function picturesLine({ train, validation, test, prior, validation_is_test, prior_from }) {
  const held = validation_is_test ? `${test} held out, which also chose` : `${validation} chose, ${test} were scored`;
  return `${train} learned from, ${held}, ${prior} generic${prior_from === "model" ? " of the base's own" : ""}`;
}

/**
 * Links to all files, by layout.
 * @param {Training} training
 */
export function downloads({ id, name, files }) {
  const groups = Map.groupBy(files, ({ path }) => (path.includes("/") ? (path.split("/").find(part => part in layouts) ?? "") : ""));
  return [...groups].map(([layout, found]) =>
    make(
      "li",
      {},
      make("span", { className: "label" }, layouts[layout] ?? "Report and samples"),
      ...found.map(file => downloadLink(id, name, file)),
    ),
  );
}

/**
 * @param {string} id
 * @param {string} name
 * @param {Training["files"][number]} file
 */
function downloadLink(id, name, { path, bytes, url }) {
  const download = `${name}-${path.split("/").at(-1)}`;
  const link = make("a", { href: onThisOrigin(url ?? ""), download }, path);
  // The signed address expires while the page stays open: each click asks for a fresh one.
  link.addEventListener("click", async event => {
    event.preventDefault();
    const fresh = (await getTraining(id)).files.find(file => file.path === path)?.url;
    if (fresh) make("a", { href: onThisOrigin(fresh), download }).click();
  });
  return make("span", { className: "download" }, link, make("span", { className: "hint" }, ` ${fileSize(bytes)}`));
}
