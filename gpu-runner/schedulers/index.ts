/** The samplers: class (or function) to loop. Public names map to classes in `config.ts`. */
import { dpmpp2mCfgPp, eulerCfgPp } from "./cfg-pp.ts";
import type { SchedulerClass } from "./config.ts";
import { ddim } from "./ddim.ts";
import { ddimInverse } from "./ddim-inverse.ts";
import { ddpm } from "./ddpm.ts";
import { deis } from "./deis.ts";
import { dpmAdaptive, dpmFast } from "./dpm-fast-adaptive.ts";
import { dpmSolverMultistep, dpmSolverMultistepInverse, edmDpmSolverMultistep } from "./dpm-solver-multistep.ts";
import { dpmSolverSde } from "./dpm-solver-sde.ts";
import { dpmSolverSinglestep } from "./dpm-solver-singlestep.ts";
import { dpmpp2sAncestral, dpmpp2sAncestralCfgPp } from "./dpmpp-2s-ancestral.ts";
import { edmEuler } from "./edm.ts";
import { erSde } from "./er-sde.ts";
import { euler } from "./euler.ts";
import { eulerAncestral } from "./euler-ancestral.ts";
import { heun } from "./heun.ts";
import { heunpp2 } from "./heunpp2.ts";
import { ipndm, ipndmContinuous } from "./ipndm.ts";
import { kdpm2, kdpm2Ancestral } from "./kdpm2.ts";
import { lcm } from "./lcm.ts";
import { lms } from "./lms.ts";
import { pndm } from "./pndm.ts";
import { resMultistep, resMultistepCfgPp } from "./res-multistep.ts";
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
  sample_dpmpp_2s_ancestral: dpmpp2sAncestral,
  sample_dpm_fast: dpmFast,
  sample_dpm_adaptive: dpmAdaptive,
  sample_heunpp2: heunpp2,
  sample_res_multistep: resMultistep,
  sample_er_sde: erSde,
  sample_euler_ancestral_cfg_pp: eulerCfgPp,
  sample_dpmpp_2m_cfg_pp: dpmpp2mCfgPp,
  sample_dpmpp_2s_ancestral_cfg_pp: dpmpp2sAncestralCfgPp,
  sample_res_multistep_cfg_pp: resMultistepCfgPp,
} as const satisfies Record<SchedulerClass, Sampler>;
