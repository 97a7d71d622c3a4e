/**
 * Convolutions and their gradients on the CPU. Where a training's pictures are large, they are computed over blocks of channels, which
 * takes four fifths of the time: serving sessions get that from ONNX Runtime's own optimiser, which would pack copies of all weights
 * in memory, whereas these lie in files that all sessions map.
 */
import type { Shape } from "../dims.ts";
import type { NodeOf, Value } from "../ir.ts";
import { type AttributeValue, blockedChannels, microsoft, type OnnxBuilder } from "../onnx.ts";

export const convolutionOps = ["Conv", "ConvTranspose", ...["Conv", "ReorderInput", "ReorderOutput"].map(op => `${blockedChannels}:${op}`)];

/** From so many pixels on another layout of the weight is worth its memory: what it saves grows with the pixels, what it takes does not. */
const pixelsToRelay = 256;

export function emitConv(node: NodeOf<"conv2d">, onnx: OnnxBuilder): void {
  const { stride, pads } = node.attributes;
  const [x, weight, bias] = node.inputs as [Value, Value, Value | undefined];
  const kernel = weight.shape.slice(2) as number[];
  const attributes = { kernel_shape: kernel, strides: [stride, stride], pads: [pads.top, pads.left, pads.bottom, pads.right] };
  const operands = bias ? [onnx.name(bias)] : [];
  const layout = { flipped: false, block: onnx.channelBlock };
  if (weight.stored && isLarge(node.outputs[0]!.shape) && fitsBlocks(weight, layout.block))
    emitBlocked(onnx, x, [onnx.relaid(weight, layout), ...operands], node.outputs[0]!, attributes);
  else onnx.node("Conv", [onnx.name(x), onnx.name(weight), ...operands], node.outputs, attributes);
}

/** A convolution whose weight lies in blocks of channels, between picture layouts as everything else has them. */
function emitBlocked(
  onnx: OnnxBuilder,
  x: Value,
  weightAndBias: readonly string[],
  out: Value,
  attributes: Readonly<Record<string, AttributeValue>>,
): void {
  const blocks = onnx.temporary("ReorderInput", [onnx.name(x)], x.shape, {}, blockedChannels);
  const result = onnx.temporary("Conv", [blocks, ...weightAndBias], out.shape, attributes, blockedChannels);
  onnx.node("ReorderOutput", [result], [out], { channels: out.shape[1] as number }, blockedChannels);
}

function isLarge([, , height, width]: Shape): boolean {
  return typeof height === "number" && typeof width === "number" && height * width >= pixelsToRelay;
}

function fitsBlocks(weight: Value, block: number): boolean {
  return block > 1 && weight.shape.slice(0, 2).every(channels => (channels as number) % block === 0);
}

/**
 * As a convolution with the flipped weight, which takes 0.55 to 0.90 of a transposed one's time; transposed where the weight is
 * trained, strided, or large beside the picture.
 */
export function emitConvInputGradient(node: NodeOf<"convInputGradient">, onnx: OnnxBuilder): void {
  const { stride, pads } = node.attributes;
  const [gradient, weight] = node.inputs as [Value, Value];
  const kernel = weight.shape.slice(2) as number[];
  // What is left of the kernel beyond the padding; padding wider than the kernel would have to be cut off instead.
  const [high, wide] = [kernel[0]! - 1, kernel[1]! - 1];
  const opposite = [high - pads.top, wide - pads.left, high - pads.bottom, wide - pads.right];
  if (weight.stored && stride === 1 && isLarge(gradient.shape) && opposite.every(count => count >= 0)) {
    const attributes = { kernel_shape: kernel, pads: opposite };
    const isBlocked = fitsBlocks(weight, onnx.channelBlock);
    const flipped = onnx.relaid(weight, { flipped: true, block: isBlocked ? onnx.channelBlock : 1 });
    if (isBlocked) emitBlocked(onnx, gradient, [flipped], node.outputs[0]!, attributes);
    else onnx.node("Conv", [onnx.name(gradient), flipped], node.outputs, attributes);
    return;
  }
  const padding = [pads.top + pads.bottom, pads.left + pads.right];
  const [from, to] = [gradient.shape.slice(2) as number[], node.outputs[0]!.shape.slice(2) as number[]];
  const attributes = {
    kernel_shape: kernel,
    strides: [stride, stride],
    pads: [pads.top, pads.left, pads.bottom, pads.right],
    // Rows and columns at the far edge that the stride stepped over.
    output_padding: to.map((size, i) => size - ((from[i]! - 1) * stride + kernel[i]! - padding[i]!)),
  };
  onnx.node("ConvTranspose", [onnx.name(gradient), onnx.name(weight)], node.outputs, attributes);
}

/** Every kernel position's pixels side by side, [B, Cin * k * k, h * w], times the gradients, summed over the items. */
export function emitConvWeightGradient(node: NodeOf<"convWeightGradient">, onnx: OnnxBuilder): void {
  const { stride, pads } = node.attributes;
  const [x, gradient, out] = [node.inputs[0]!, node.inputs[1]!, node.outputs[0]!];
  const [batch, channels, height, width] = x.shape as number[];
  const [, filters, rows, columns] = gradient.shape as number[];
  const [kernelHeight, kernelWidth] = out.shape.slice(2) as [number, number];
  const [paddedHeight, paddedWidth] = [height! + pads.top + pads.bottom, width! + pads.left + pads.right];
  const isPadded = paddedHeight !== height || paddedWidth !== width;
  const padded = isPadded
    ? onnx.temporary(
        "Pad",
        [onnx.name(x), onnx.ints([pads.top, pads.left, pads.bottom, pads.right]), "", onnx.ints([2, 3])],
        [batch!, channels!, paddedHeight, paddedWidth],
      )
    : onnx.name(x);
  const pixels = rows! * columns!;
  const positions: string[] = [];
  for (let i = 0; i < kernelHeight; i++)
    for (let j = 0; j < kernelWidth; j++) {
      const [start, end] = [
        [i, j],
        [i + (rows! - 1) * stride + 1, j + (columns! - 1) * stride + 1],
      ];
      const inputs = [padded, onnx.ints(start!), onnx.ints(end!), onnx.ints([2, 3]), onnx.ints([stride, stride])];
      const taken = onnx.temporary("Slice", inputs, [batch!, channels!, rows!, columns!]);
      positions.push(onnx.temporary("Reshape", [taken, onnx.ints([batch!, channels!, 1, pixels])], [batch!, channels!, 1, pixels]));
    }
  const depth = channels! * positions.length;
  const beside = onnx.temporary("Concat", positions, [batch!, channels!, positions.length, pixels], { axis: 2 });
  const patches = onnx.temporary("Reshape", [beside, onnx.ints([batch!, depth, pixels])], [batch!, depth, pixels]);
  const flat = onnx.temporary("Reshape", [onnx.name(gradient), onnx.ints([batch!, filters!, pixels])], [batch!, filters!, pixels]);
  const products = onnx.temporary("FusedMatMul", [flat, patches], [batch!, filters!, depth], { transB: 1 }, microsoft);
  const sum = onnx.temporary("ReduceSum", [products, onnx.ints([0])], [filters!, depth], { keepdims: 0 });
  onnx.node("Reshape", [sum, onnx.ints(out.shape as number[])], [out]);
}
