/** ControlNets on their base: each residual as it reaches the UNet, and a noise prediction with all of them. */
import { z } from "zod";
import { openControlNet } from "../../adapters/controlnet/controlnet.ts";
import { type ControlResiduals, scaleResiduals, sumResiduals } from "../../adapters/controlnet/residuals.ts";
import type { DiffusionModel, TensorF32 } from "../../components.ts";
import { float32Input, type GoldenAdapter, type GoldenCase, type VerifyContext, type VerifyKind } from "../kind.ts";
import { unsupportedBase } from "../model-support.ts";
import { conditions, noisePrediction } from "./adapter-outputs.ts";

const paramsSchema = z.object({
  conditioningScale: z.array(z.number()).nonempty(),
  /** Of single files, whose keys do not tell head counts. */
  config: z.unknown().optional(),
  guessMode: z.boolean().default(false),
  globalPoolConditions: z.boolean().default(false),
  /** Which control of a union each map is. */
  controlMode: z.array(z.int()).optional(),
});

export const controlNetKind: VerifyKind = {
  kind: "controlnet",
  supports: (_, modelPath) => unsupportedBase(modelPath),
  async run(goldenCase, context) {
    const { adapters = [] } = goldenCase;
    const model = await context.model();
    const nets: ControlResiduals[] = [];
    for (const [index, adapter] of adapters.entries()) nets.push(await residuals(goldenCase, context, { model, adapter, index }));
    const control = sumResiduals(nets);
    return {
      ...Object.fromEntries(control.down.map((tensor, i): [string, TensorF32] => [`down_${i}`, tensor])),
      mid: control.mid,
      noise_pred: await noisePrediction(goldenCase, context, { control }),
    };
  },
};

async function residuals(
  goldenCase: GoldenCase,
  context: VerifyContext,
  { model, adapter, index }: { model: DiffusionModel; adapter: GoldenAdapter; index: number },
): Promise<ControlResiduals> {
  const params = paramsSchema.parse(goldenCase.params);
  const isSingleFile = adapter.file.endsWith(".safetensors");
  const net = await openControlNet(context.path(adapter.file), model.unet, {
    provider: "cpu",
    cacheDir: context.cacheDir,
    ...(isSingleFile && params.config !== undefined && { config: params.config }),
  });
  try {
    const cond = float32Input(context, index === 0 ? "controlnet_cond" : `controlnet_cond_${index + 1}`);
    const { sample, ...args } = conditions(goldenCase, context);
    const raw = await net.run({ sample, ...args, cond, control: params.controlMode?.[index] ?? null });
    const weight = params.conditioningScale[index] ?? adapter.weight;
    return scaleResiduals(raw, {
      weights: Array<number>(sample.shape[0]!).fill(weight),
      guessMode: params.guessMode,
      globalPool: params.globalPoolConditions || net.globalPool,
    });
  } finally {
    await net.release();
  }
}
