/** What a model is asked for where a request is silent, as its description tells. */
import type { ModelFamily, ModelManifest } from "../shared/model.ts";
import { resolveSamplerName } from "../shared/samplers.ts";
import type { ModelDescription } from "./weights/describe.ts";

type Settings = Pick<ModelManifest["defaults"], "steps" | "guidance_scale">;

/** What diffusers' pipelines of each family take where a request is silent. */
const familyDefaults = {
  sd1: { steps: 50, guidance_scale: 7.5 },
  sd2: { steps: 50, guidance_scale: 7.5 },
  sdxl: { steps: 50, guidance_scale: 5 },
  "sdxl-refiner": { steps: 50, guidance_scale: 5 },
} as const satisfies Record<ModelFamily, Settings>;

export function defaultsOf(model: ModelDescription): ModelManifest["defaults"] {
  const named = resolveSamplerName(String(model.schedulerConfig._class_name));
  return {
    width: model.defaultWidth,
    height: model.defaultHeight,
    ...(distilledDefaults(model) ?? familyDefaults[model.family]),
    guidance_rescale: 0,
    sampler: named?.sampler ?? "ddim",
    sampler_options: named?.options ?? {},
    clip_skip: 0,
  };
}

/**
 * A distilled model shows in its scheduler's file alone: consistency samplers, or steps counted from the last timestep (Turbo, Lightning,
 * Hyper), which otherwise only models have whose noise ends at zero signal. Few steps and no guidance are what those are made for; a
 * latent consistency model that reads the guidance scale takes the scale of its pipeline.
 */
function distilledDefaults({ schedulerConfig, predictionType, readsGuidance }: ModelDescription): Settings | null {
  const { _class_name: name, timestep_spacing: spacing, rescale_betas_zero_snr: zeroTerminal } = schedulerConfig;
  if (readsGuidance) return { steps: 4, guidance_scale: 8.5 };
  const fromTheEnd = spacing === "trailing" && zeroTerminal !== true && predictionType === "epsilon";
  return name === "LCMScheduler" || name === "TCDScheduler" || fromTheEnd ? { steps: 4, guidance_scale: 1 } : null;
}
