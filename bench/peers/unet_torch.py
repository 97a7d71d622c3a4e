"""diffusers' UNet2DConditionModel in PyTorch: unet_torch.py <config.json> <weights.safetensors> <scratch folder> <threads>."""
import time
import peer

peer.need("numpy", "torch", "diffusers")
import torch
from unet_diffusers import load

config, weights, _, threads = peer.arguments()
torch.set_num_threads(threads)
began = time.perf_counter()
unet = load(config, weights)
load_seconds = time.perf_counter() - began


def prepare(side):
    sample, timestep, text = (torch.from_numpy(x) for x in peer.inputs(unet.config, side))

    def run():
        with torch.inference_mode():
            return unet(sample, timestep, text, return_dict=False)[0].numpy()
    return run


peer.serve(prepare, load_seconds)
