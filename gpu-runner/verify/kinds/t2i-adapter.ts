/** T2I-Adapters on their base: each feature, and a noise prediction with all of them. */
import { z } from "zod";
import { sumFeatures } from "../../adapters/t2i-adapter/features.ts";
import { openT2iAdapter } from "../../adapters/t2i-adapter/t2i-adapter.ts";
import type { TensorF32 } from "../../components.ts";
import { float32Input, type VerifyKind } from "../kind.ts";
import { unsupportedBase } from "../model-support.ts";
import { noisePrediction } from "./adapter-outputs.ts";

const paramsSchema = z.object({ conditioningScale: z.array(z.number()).nonempty(), config: z.unknown().optional() });

export const t2iAdapterKind: VerifyKind = {
  kind: "t2i-adapter",
  supports: (_, modelPath) => unsupportedBase(modelPath),
  async run(goldenCase, context) {
    const { adapters = [] } = goldenCase;
    const { conditioningScale, config } = paramsSchema.parse(goldenCase.params);
    const model = await context.model();
    const scaled: { features: readonly TensorF32[]; weights: readonly number[] }[] = [];
    for (const [index, { file, weight }] of adapters.entries()) {
      const given = file.endsWith(".safetensors") && config !== undefined ? { config } : {};
      const adapter = await openT2iAdapter(context.path(file), model.unet, { provider: "cpu", cacheDir: context.cacheDir, ...given });
      const cond = float32Input(context, index === 0 ? "t2i_cond" : `t2i_cond_${index + 1}`);
      scaled.push({
        features: await adapter.features(cond),
        weights: Array<number>(cond.shape[0]!).fill(conditioningScale[index] ?? weight),
      });
      await adapter.release();
    }
    const t2iFeatures = sumFeatures(scaled);
    return {
      ...Object.fromEntries(t2iFeatures.map((tensor, i): [string, TensorF32] => [`feature_${i}`, tensor])),
      noise_pred: await noisePrediction(goldenCase, context, { t2iFeatures }),
    };
  },
};
