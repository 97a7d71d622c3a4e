import { make } from "./dom.js";

/** A line of a diagram: points as step and value. @typedef {{ title: string, style: "raw" | "smooth" | "dots", points: readonly (readonly [number, number])[] }} Line */

const namespace = "http://www.w3.org/2000/svg";
const margin = { left: 52, right: 12, top: 12, bottom: 24 };
/** More points than this in a line would not be seen. */
const mostPoints = 800;

/**
 * A small diagram over the steps of a training, drawn anew whenever it is told of lines or of another width.
 * @param {string} label what is drawn, for those who don't see it
 * @param {number} height in pixels
 */
export function curve(label, height) {
  const svg = element("svg", { class: "curve", role: "img", height });
  const readout = make("p", { className: "hint curve-readout" });
  const legend = make("p", { className: "hint curve-legend" });
  const figure = make("figure", { className: "curve-figure" }, svg, make("figcaption", {}, legend, readout));
  /** @type {readonly Line[]} */
  let lines = [];
  let last = 1;

  function draw() {
    const width = Math.max(figure.clientWidth, 240);
    const shown = lines.filter(({ points }) => points.length > 0);
    const x = scale([0, Math.max(last, 1)], [margin.left, width - margin.right]);
    const [low, high] = span(shown);
    const y = scale([low, high], [height - margin.bottom, margin.top]);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("aria-label", `${label}. ${summary(shown)}`);
    svg.replaceChildren(
      ...ticks(low, high, Math.round(height / 55)).map(value => gridLine(y(value), width, number(value))),
      ...ticks(0, last, Math.max(2, Math.floor(width / 110))).map(step => text(x(step), height - 6, "middle", step.toLocaleString("en"))),
      ...shown.flatMap(line => drawn(line, x, y)),
    );
    legend.replaceChildren(...shown.map(({ title, style }) => make("span", { className: `curve-key ${style}` }, title)));
  }

  svg.addEventListener("pointermove", event => {
    const { left, width } = svg.getBoundingClientRect();
    const share = (event.clientX - left - margin.left) / (width - margin.left - margin.right);
    readout.textContent = valuesAt(lines, Math.round(share * last));
  });
  svg.addEventListener("pointerleave", () => {
    readout.textContent = "";
  });
  new ResizeObserver(draw).observe(figure);
  return {
    element: figure,
    /**
     * @param {readonly Line[]} drawn
     * @param {number} steps where the axis ends
     */
    show(drawn, steps) {
      lines = drawn;
      last = steps;
      draw();
    },
  };
}

/**
 * @param {string} name
 * @param {Record<string, string | number>} attributes
 * @param {(Node | string)[]} children
 */
function element(name, attributes, ...children) {
  const made = document.createElementNS(namespace, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  made.append(...children);
  return made;
}

/**
 * @param {readonly [number, number]} from
 * @param {readonly [number, number]} to
 * @returns {(value: number) => number}
 */
function scale([from, until], [start, end]) {
  return value => start + ((value - from) / (until - from || 1)) * (end - start);
}

/**
 * The values that the diagram spans. Single steps jump by what timestep they drew: the highest fiftieth may leave the top.
 * @param {readonly Line[]} lines
 * @returns {[number, number]}
 */
function span(lines) {
  const values = lines.flatMap(({ points, style }) => {
    const sorted = points.map(([, value]) => value).sort((a, b) => a - b);
    return style === "raw" && sorted.length > 50 ? sorted.slice(0, Math.ceil(sorted.length * 0.98)) : sorted;
  });
  if (values.length === 0) return [0, 1];
  const low = values.reduce((a, b) => Math.min(a, b));
  const high = values.reduce((a, b) => Math.max(a, b));
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

/**
 * Round values between two others, about as many as wanted.
 * @param {number} low
 * @param {number} high
 * @param {number} wanted
 */
export function ticks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * ([1, 2, 5, 10].find(factor => factor * unit >= rough) ?? 10);
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: count }, (_, i) => (first + i) * step);
}

/** @param {number} value */
function number(value) {
  return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(4)));
}

/**
 * @param {number} y
 * @param {number} width
 * @param {string} label
 */
function gridLine(y, width, label) {
  return element(
    "g",
    {},
    element("line", { class: "grid", x1: margin.left, x2: width - margin.right, y1: y, y2: y }),
    text(margin.left - 8, y + 4, "end", label),
  );
}

/**
 * @param {number} x
 * @param {number} y
 * @param {"end" | "middle"} anchor
 * @param {string} content
 */
function text(x, y, anchor, content) {
  return element("text", { x, y, "text-anchor": anchor }, content);
}

/**
 * @param {Line} line
 * @param {(step: number) => number} x
 * @param {(value: number) => number} y
 */
function drawn({ style, points }, x, y) {
  const every = Math.ceil(points.length / mostPoints);
  const kept = points.filter((_, i) => i % every === 0 || i === points.length - 1);
  const places = kept.map(([step, value]) => [x(step), Math.max(y(value), 0)]);
  const line = element("polyline", { class: style, points: places.map(place => place.map(v => v.toFixed(1)).join(",")).join(" ") });
  const dots = style === "dots" ? places.map(([cx = 0, cy = 0]) => element("circle", { class: style, cx, cy, r: 3.5 })) : [];
  return [line, ...dots];
}

/** @param {readonly Line[]} lines */
function summary(lines) {
  return lines.map(({ title, points }) => `${title} from ${number(points[0]?.[1] ?? 0)} to ${number(points.at(-1)?.[1] ?? 0)}`).join(", ");
}

/**
 * What the lines say at a step.
 * @param {readonly Line[]} lines
 * @param {number} step
 */
function valuesAt(lines, step) {
  const found = lines.flatMap(({ title, points }) => {
    const point = points.findLast(([at]) => at <= step);
    return point ? [`${title} ${number(point[1])}`] : [];
  });
  return found.length > 0 ? `Step ${step.toLocaleString("en")}: ${found.join(", ")}` : "";
}
