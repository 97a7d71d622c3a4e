/** A1111's hypernetworks: as safetensors with their options, and as pickles that are read as data or refused. */
import { z } from "zod";
import type { HyperNetwork } from "../../adapters/adapter.ts";
import { adapterDiskFiles, hashAdapterFiles } from "../../adapters/content-hash.ts";
import { openHyperNetwork } from "../../adapters/hypernetwork.ts";
import type { TensorF32 } from "../../components.ts";
import { ModelError } from "../../weights/model-error.ts";
import type { GoldenCase, GoldenRefusal, VerifyContext, VerifyKind } from "../kind.ts";
import { unsupportedBase } from "../model-support.ts";
import { noisePrediction } from "./adapter-outputs.ts";

const paramsSchema = z.object({ options: z.string().optional(), mustRefuse: z.boolean().default(false) });

const expectedSchema = z.object({ forbiddenGlobals: z.array(z.string()) });

export const hyperNetworkKind: VerifyKind = {
  kind: "hypernetwork",
  supports: (_, modelPath) => unsupportedBase(modelPath),
  run: async (goldenCase, context) => ({ noise_pred: await predictWith(goldenCase, context) }),
};

/** What a pickle calls is never run: there is nothing here that could. A case whose file calls something passes when the call is refused by name. */
export const hyperNetworkPickleKind: VerifyKind = {
  kind: "hypernetwork-pickle",
  supports: (_, modelPath) => unsupportedBase(modelPath),
  async run(goldenCase, context) {
    const { mustRefuse } = paramsSchema.parse(goldenCase.params);
    if (!mustRefuse) return outputs(await predictWith(goldenCase, context), {});
    const refusal = await predictWith(goldenCase, context).catch((error: unknown) => error);
    if (!(refusal instanceof ModelError)) throw refusal instanceof Error ? refusal : new Error("expected a refusal, got a prediction");
    const { forbiddenGlobals } = expectedSchema.parse(goldenCase.expectedJson);
    const named = forbiddenGlobals.some(name => refusal.message.includes(`global ${name}:`));
    return outputs({ refused: refusal.message }, { mustRefuse: true, forbiddenGlobals: named ? forbiddenGlobals : refusal.message });
  },
};

function outputs(prediction: TensorF32 | GoldenRefusal, values: Record<string, unknown>) {
  const json = Object.entries({ executes: false, ...values }).map(([name, value]) => [name, { json: value }] as const);
  return { noise_pred: prediction, ...Object.fromEntries(json) };
}

async function predictWith(goldenCase: GoldenCase, context: VerifyContext): Promise<TensorF32> {
  const { options } = paramsSchema.parse(goldenCase.params);
  const uses: { adapter: HyperNetwork; weight: number }[] = [];
  for (const { file, weight } of goldenCase.adapters ?? []) {
    const files = adapterDiskFiles(context.path(file));
    const adapter = await openHyperNetwork(files, await hashAdapterFiles(files), options === undefined ? undefined : context.path(options));
    uses.push({ adapter, weight });
  }
  const items = Array.from({ length: context.input("sample").shape[0]! }, () => uses);
  return noisePrediction(goldenCase, context, { hypernetworks: items });
}
