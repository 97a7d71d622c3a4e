/** Outputs that the cases of several adapter kinds have. */
import type { DiffusionModel, EncodeTextArgs, LoraUse, PredictArgs, TensorF32 } from "../../components.ts";
import { float32Input, type GoldenCase, type GoldenTensor, type VerifyContext } from "../kind.ts";

type Conditions = Pick<PredictArgs, "sample" | "timesteps" | "encoderHiddenStates" | "added">;

/** The case's inputs of the UNet, which a ControlNet has too; one timestep may stand for all items. */
export function conditions(goldenCase: GoldenCase, context: VerifyContext): Conditions {
  const sdxl = "text_embeds" in goldenCase.inputs;
  const sample = float32Input(context, "sample");
  const timesteps = Array.from(float32Input(context, "timestep").data);
  return {
    sample,
    timesteps: timesteps.length === 1 ? Array<number>(sample.shape[0]!).fill(timesteps[0]!) : timesteps,
    encoderHiddenStates: float32Input(context, "encoder_hidden_states"),
    ...(sdxl && { added: { textEmbeds: float32Input(context, "text_embeds"), timeIds: float32Input(context, "time_ids") } }),
  };
}

/** A noise prediction with adapters. */
export async function noisePrediction(
  goldenCase: GoldenCase,
  context: VerifyContext,
  adapters: Omit<PredictArgs, keyof Conditions>,
): Promise<TensorF32> {
  return (await context.model()).predict({ ...conditions(goldenCase, context), ...adapters });
}

/** Token ids [B, L] as lists. */
export function tokenIds({ data, shape }: GoldenTensor): number[][] {
  const [batch, length] = shape as [number, number];
  return Array.from({ length: batch }, (_, item) => Array.from({ length }, (_, i) => data[item * length + i]!));
}

/** `text_hidden`: the normed last state of one encoder, or both raw penultimate states beside one another; `pooled`: the second's. */
export async function textStates(
  model: DiffusionModel,
  encoders: readonly Pick<EncodeTextArgs, "inputIds" | "extraEmbeddings">[],
  loras: readonly LoraUse[] = [],
): Promise<Record<string, TensorF32>> {
  const states = [];
  for (const [encoder, args] of encoders.entries())
    states.push(await model.encodeText({ ...args, encoder, ...(loras.length > 0 && { loras: args.inputIds.map(() => loras) }) }));
  const [first, second] = states;
  if (!second) return { text_hidden: first!.normed(0) };
  return { text_hidden: concatenated(first!.hidden(1), second.hidden(1)), pooled: second.pooled };
}

/** [B, L, C] and [B, L, D] to [B, L, C + D]. */
function concatenated(a: TensorF32, b: TensorF32): TensorF32 {
  const [batch, length, left] = a.shape as [number, number, number];
  const right = b.shape[2]!;
  const data = new Float32Array(batch * length * (left + right));
  for (let row = 0; row < batch * length; row++) {
    data.set(a.data.subarray(row * left, (row + 1) * left), row * (left + right));
    data.set(b.data.subarray(row * right, (row + 1) * right), row * (left + right) + left);
  }
  return { data, shape: [batch, length, left + right] };
}
