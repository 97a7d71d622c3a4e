"""What diffusers has for a training's timesteps: alphas with zero terminal SNR, and logit-normal draws.

    python make_timesteps.py      (torch, diffusers; on the CPU)

writes timesteps.json beside itself: the cumulative alphas of ../adapters/models/sd15 by DDPMScheduler with rescale_betas_zero_snr, and for Gaussians
in rising order the timestep that compute_density_for_timestep_sampling leads to as diffusers' training scripts use it: floor(1000 u).
"""
import json
import os

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling

here = os.path.dirname(os.path.abspath(__file__))
scheduler = DDPMScheduler.from_pretrained(os.path.join(here, "../adapters/models/sd15/scheduler"), rescale_betas_zero_snr=True)
gaussians = torch.normal(mean=0.0, std=1.0, size=(3000,), generator=torch.Generator().manual_seed(7))
shares = compute_density_for_timestep_sampling("logit_normal", 3000, logit_mean=0.0, logit_std=1.0, generator=torch.Generator().manual_seed(7))
order = gaussians.argsort()
result = {"alphas": [float(f"{value:.9g}") for value in scheduler.alphas_cumprod.tolist()],
          "gaussians": [float(f"{value:.7g}") for value in gaussians[order].tolist()],
          "timesteps": (shares[order] * 1000).long().tolist()}
with open(os.path.join(here, "timesteps.json"), "w") as file:
    file.write(json.dumps(result) + "\n")
