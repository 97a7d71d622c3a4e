/** The kinds of reference case that this build can run, by their names in `cases.json`. */
import type { VerifyKind } from "../kind.ts";
import { combinedKind } from "./combined.ts";
import { controlNetKind } from "./controlnet.ts";
import { hyperNetworkKind, hyperNetworkPickleKind } from "./hypernetwork.ts";
import { ipAdapterKind } from "./ip-adapter.ts";
import { loraKind } from "./lora.ts";
import { noiseKind } from "./noise.ts";
import { pipelineKind } from "./pipeline.ts";
import { previewDecodeKind } from "./preview-decode.ts";
import { promptKind } from "./prompt.ts";
import { promptScheduleKind } from "./prompt-schedule.ts";
import { schedulerKind } from "./scheduler.ts";
import { sourcePictureKind } from "./source-picture.ts";
import { t2iAdapterKind } from "./t2i-adapter.ts";
import { textEncoderKind } from "./text-encoder.ts";
import { textualInversionKind } from "./textual-inversion.ts";
import { tokenizerKind } from "./tokenizer.ts";
import { trainGradientKind } from "./train-gradient.ts";
import { trainTrajectoryKind } from "./train-trajectory.ts";
import { unetKind } from "./unet.ts";
import { vaeDecodeKind } from "./vae-decode.ts";
import { vaeEncodeKind } from "./vae-encode.ts";

export const verifyKinds: Readonly<Record<string, VerifyKind>> = Object.fromEntries(
  [
    tokenizerKind,
    textEncoderKind,
    unetKind,
    vaeEncodeKind,
    vaeDecodeKind,
    previewDecodeKind,
    schedulerKind,
    noiseKind,
    pipelineKind,
    loraKind,
    textualInversionKind,
    hyperNetworkKind,
    hyperNetworkPickleKind,
    ipAdapterKind,
    controlNetKind,
    t2iAdapterKind,
    combinedKind,
    promptKind,
    promptScheduleKind,
    sourcePictureKind,
    trainGradientKind,
    trainTrajectoryKind,
  ].map(kind => [kind.kind, kind]),
);
