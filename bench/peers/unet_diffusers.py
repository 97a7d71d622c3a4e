"""The reference's UNet with the benchmark's weights."""
import json
import torch
from diffusers import UNet2DConditionModel


def load(config, weights):
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    unet.load_state_dict(read(weights), strict=True, assign=True)
    return unet.eval()


def read(path):
    """Tensors of an fp32 safetensors file, read instead of mapped: a mapping can be evicted, and read again in the middle of a run."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start, tensors = file.tell(), {}
        for name, entry in header.items():
            tensors[name] = torch.empty(entry["shape"])
            file.seek(start + entry["data_offsets"][0])
            file.readinto(tensors[name].numpy())
    return tensors
