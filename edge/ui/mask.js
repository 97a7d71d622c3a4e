/** @typedef {{ x: number, y: number }} Point */
/**
 * What was done to a mask. Points and sizes are pixels of the mask.
 * @typedef {{ kind: "stroke", erase: boolean, size: number, points: Point[] } | { kind: "clear" } | { kind: "invert" }} Operation
 */

/** The mask is kept so: any one colour where the picture is repainted, nothing elsewhere. */
const MASK_COLOUR = "#ff3d8a";

/**
 * Draws a mask anew.
 * @param {CanvasRenderingContext2D} context
 * @param {readonly Operation[]} operations
 */
export function drawMask(context, operations) {
  const { width, height } = context.canvas;
  context.clearRect(0, 0, width, height);
  const last = operations.findLastIndex(({ kind }) => kind === "clear");
  for (const operation of operations.slice(last + 1)) applyOperation(context, operation);
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Operation} operation
 */
export function applyOperation(context, operation) {
  const { width, height } = context.canvas;
  context.save();
  context.fillStyle = MASK_COLOUR;
  if (operation.kind === "clear") context.clearRect(0, 0, width, height);
  if (operation.kind === "invert") {
    context.globalCompositeOperation = "xor";
    context.fillRect(0, 0, width, height);
  }
  if (operation.kind === "stroke") drawStroke(context, operation);
  context.restore();
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Extract<Operation, { kind: "stroke" }>} stroke
 */
function drawStroke(context, { erase, size, points }) {
  context.globalCompositeOperation = erase ? "destination-out" : "source-over";
  context.strokeStyle = MASK_COLOUR;
  Object.assign(context, { lineWidth: size, lineCap: "round", lineJoin: "round" });
  const [first, ...rest] = points;
  if (!first) return;
  context.beginPath();
  context.moveTo(first.x, first.y);
  if (rest.length === 0) context.lineTo(first.x, first.y + 0.01);
  for (const { x, y } of rest) context.lineTo(x, y);
  context.stroke();
}

/**
 * The mask as the API wants it: white where the picture is repainted, black elsewhere.
 * @param {HTMLCanvasElement} mask
 * @returns {Promise<Blob | null>} null where nothing is painted
 */
export async function maskFile(mask) {
  const { width, height } = mask;
  const pixels = mask.getContext("2d")?.getImageData(0, 0, width, height).data ?? new Uint8ClampedArray();
  if (!pixels.some((value, i) => i % 4 === 3 && value >= 128)) return null;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  if (!context) return null;
  context.drawImage(mask, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.globalCompositeOperation = "destination-over";
  context.fillStyle = "black";
  context.fillRect(0, 0, width, height);
  return canvas.convertToBlob({ type: "image/png" });
}
