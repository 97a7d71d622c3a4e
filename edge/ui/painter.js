import { announce, byId } from "./dom.js";
import { applyOperation, drawMask, maskFile } from "./mask.js";

/** @typedef {import("./mask.js").Operation} Operation */
/** @typedef {import("./picture-field.js").Input} Input */

/** Masks need no more detail than this along their longer side, in pixels. */
const LONGEST_SIDE = 1024;
const dialog = byId("painter", HTMLDialogElement);
const canvas = byId("painter-mask", HTMLCanvasElement);
const image = byId("painter-picture", HTMLImageElement);
const cursor = byId("painter-cursor", HTMLElement);
const brush = byId("brush-size", HTMLInputElement);

/** What was painted over each picture, by its id: a mask can be gone on with. @type {Map<string, Operation[]>} */
const painted = new Map();
/** @type {Operation[]} */
let operations = [];
/** @type {Extract<Operation, { kind: "stroke" }> | null} */
let stroke = null;
/** Where the keyboard's brush is. */
const position = { x: 0, y: 0 };
/** @type {(mask: Blob | null) => void} */
let onDone = () => undefined;

/** Lets the mask be painted by pointer and keyboard. */
export function setUpPainter() {
  canvas.addEventListener("pointerdown", event => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    begin(pointOf(event));
  });
  canvas.addEventListener("pointermove", event => {
    Object.assign(position, pointOf(event));
    showCursor();
    if (stroke) for (const each of [...event.getCoalescedEvents(), event]) extend(pointOf(each));
  });
  for (const type of ["pointerup", "pointercancel"]) canvas.addEventListener(type, end);
  canvas.addEventListener("keydown", paintByKey);
  // Screen readers then leave the arrow keys to the page.
  canvas.setAttribute("role", "application");
  brush.addEventListener("input", showCursor);
  for (const [id, run] of Object.entries({ "mask-undo": undo, "mask-clear": clear, "mask-invert": invert, "mask-use": use }))
    byId(id, HTMLButtonElement).addEventListener("click", run);
  dialog.addEventListener("keydown", event => {
    if (event.key.toLowerCase() !== "z" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    undo();
  });
}

/**
 * Opens the painter over a picture.
 * @param {Input} input
 * @param {(mask: Blob | null) => void} done gets the mask, or null where it is empty; not called where the painter is only closed
 */
export function openPainter({ id, url, width, height }, done) {
  onDone = done;
  operations = painted.get(id) ?? [];
  painted.set(id, operations);
  const scale = Math.min(1, LONGEST_SIDE / Math.max(width ?? 512, height ?? 512));
  canvas.width = Math.round((width ?? 512) * scale);
  canvas.height = Math.round((height ?? 512) * scale);
  image.hidden = url === null;
  if (url) image.src = url;
  byId("painter-stage", HTMLElement).style.setProperty("--shape", String(canvas.width / canvas.height));
  Object.assign(position, { x: canvas.width / 2, y: canvas.height / 2 });
  redraw();
  dialog.showModal();
  showCursor();
}

function context() {
  const found = canvas.getContext("2d", { willReadFrequently: true });
  if (!found) throw new Error("the browser has no 2D canvas");
  return found;
}

function redraw() {
  drawMask(context(), operations);
  byId("mask-undo", HTMLButtonElement).disabled = operations.length === 0;
}

/** The brush's diameter, in pixels of the mask. */
function brushSize() {
  return (Number(brush.value) / 100) * Math.max(canvas.width, canvas.height);
}

/** @param {{ clientX: number, clientY: number }} event */
function pointOf({ clientX, clientY }) {
  const { left, top, width, height } = canvas.getBoundingClientRect();
  return { x: ((clientX - left) / width) * canvas.width, y: ((clientY - top) / height) * canvas.height };
}

/** @param {import("./mask.js").Point} point */
function begin(point) {
  stroke = { kind: "stroke", erase: byId("brush-erase", HTMLInputElement).checked, size: brushSize(), points: [point] };
  applyOperation(context(), stroke);
}

/** @param {import("./mask.js").Point} point */
function extend(point) {
  if (!stroke) return;
  const from = stroke.points.at(-1) ?? point;
  stroke.points.push(point);
  applyOperation(context(), { ...stroke, points: [from, point] });
}

function end() {
  if (stroke) operations.push(stroke);
  stroke = null;
  redraw();
}

/** @type {Record<string, [number, number]>} */
const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** @param {KeyboardEvent} event */
function paintByKey(event) {
  const direction = directions[event.key];
  if (direction) {
    const far = brushSize() / 2;
    position.x = Math.min(canvas.width, Math.max(0, position.x + direction[0] * far));
    position.y = Math.min(canvas.height, Math.max(0, position.y + direction[1] * far));
    showCursor();
  } else if (event.key === " ") {
    begin({ ...position });
    end();
  } else return;
  event.preventDefault();
}

function showCursor() {
  const scale = canvas.clientWidth / canvas.width;
  const size = brushSize() * scale;
  cursor.style.setProperty("width", `${size}px`);
  cursor.style.setProperty("height", `${size}px`);
  cursor.style.setProperty("translate", `${position.x * scale - size / 2}px ${position.y * scale - size / 2}px`);
}

/**
 * @param {Operation} operation
 * @param {string} said
 */
function add(operation, said) {
  operations.push(operation);
  redraw();
  announce(said);
}

function undo() {
  if (operations.pop()) announce("Undone");
  redraw();
}

function clear() {
  add({ kind: "clear" }, "Mask cleared");
}

function invert() {
  add({ kind: "invert" }, "Mask inverted");
}

async function use() {
  onDone(await maskFile(canvas));
  dialog.close();
}
