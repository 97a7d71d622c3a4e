/** The samplers: diffusers' class to loop. Public names map to classes in `config.ts`. */
import type { SchedulerClass } from "./config.ts";
import { ddim } from "./ddim.ts";
import { dpmSolverMultistep } from "./dpm-solver-multistep.ts";
import { euler } from "./euler.ts";
import { eulerAncestral } from "./euler-ancestral.ts";
import type { Sampler } from "./sampler.ts";

export const samplers = {
  DDIMScheduler: ddim,
  EulerDiscreteScheduler: euler,
  EulerAncestralDiscreteScheduler: eulerAncestral,
  DPMSolverMultistepScheduler: dpmSolverMultistep,
} as const satisfies Record<SchedulerClass, Sampler>;
