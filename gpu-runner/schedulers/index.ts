/** The samplers: class (or function) to loop. Public names map to classes in `config.ts`. */
import type { SchedulerClass } from "./config.ts";
import { ddim } from "./ddim.ts";
import { ddimInverse } from "./ddim-inverse.ts";
import { ddpm } from "./ddpm.ts";
import { deis } from "./deis.ts";
import { dpmSolverMultistep, dpmSolverMultistepInverse, edmDpmSolverMultistep } from "./dpm-solver-multistep.ts";
import { dpmSolverSde } from "./dpm-solver-sde.ts";
import { dpmSolverSinglestep } from "./dpm-solver-singlestep.ts";
import { edmEuler } from "./edm.ts";
import { euler } from "./euler.ts";
import { eulerAncestral } from "./euler-ancestral.ts";
import { heun } from "./heun.ts";
import { ipndm, ipndmContinuous } from "./ipndm.ts";
import { kdpm2, kdpm2Ancestral } from "./kdpm2.ts";
import { lcm } from "./lcm.ts";
import { lms } from "./lms.ts";
import { pndm } from "./pndm.ts";
import { saSolver } from "./sa-solver.ts";
import type { Sampler } from "./sampler.ts";
import { tcd } from "./tcd.ts";
import { unipc } from "./unipc.ts";

export const samplers = {
  DDIMScheduler: ddim,
  DDPMScheduler: ddpm,
  PNDMScheduler: pndm,
  LMSDiscreteScheduler: lms,
  EulerDiscreteScheduler: euler,
  EulerAncestralDiscreteScheduler: eulerAncestral,
  HeunDiscreteScheduler: heun,
  KDPM2DiscreteScheduler: kdpm2,
  KDPM2AncestralDiscreteScheduler: kdpm2Ancestral,
  DPMSolverMultistepScheduler: dpmSolverMultistep,
  DPMSolverSinglestepScheduler: dpmSolverSinglestep,
  DPMSolverSDEScheduler: dpmSolverSde,
  DEISMultistepScheduler: deis,
  UniPCMultistepScheduler: unipc,
  SASolverScheduler: saSolver,
  IPNDMScheduler: ipndmContinuous,
  LCMScheduler: lcm,
  TCDScheduler: tcd,
  EDMEulerScheduler: edmEuler,
  EDMDPMSolverMultistepScheduler: edmDpmSolverMultistep,
  DDIMInverseScheduler: ddimInverse,
  DPMSolverMultistepInverseScheduler: dpmSolverMultistepInverse,
  sample_ipndm: ipndm,
} as const satisfies Record<SchedulerClass, Sampler>;
