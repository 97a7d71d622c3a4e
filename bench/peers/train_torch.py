"""LoRA training steps by peft in PyTorch: train_torch.py <config.json> <weights.safetensors> <scratch folder> <threads> [checkpointed]."""
import json, math, resource, sys, time
import peer

peer.need("numpy", "torch", "diffusers", "peft")
import torch
from peft import LoraConfig
from unet_diffusers import load

checkpointed = sys.argv[5:] == ["checkpointed"]
del sys.argv[5:]
config, weights, _, threads = peer.arguments()
torch.set_num_threads(threads)
began = time.perf_counter()
unet = load(config, weights)
unet.requires_grad_(False)
unet.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
trained = [(name, parameter) for name, parameter in unet.named_parameters() if parameter.requires_grad]
for name, parameter in trained:
    if "lora_A" in name:
        values = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64)) / math.sqrt(8)
        parameter.data.copy_(values.view_as(parameter))
if checkpointed:
    unet.enable_gradient_checkpointing()
unet.train()
optimizer = torch.optim.AdamW([parameter for _, parameter in trained], lr=1e-4, weight_decay=0.01)
load_seconds = time.perf_counter() - began

for line in sys.stdin:
    sample, timestep, text = (torch.from_numpy(x) for x in peer.inputs(unet.config, json.loads(line)["side"]))
    start = time.perf_counter()
    optimizer.zero_grad()
    loss = unet(sample, timestep, text, return_dict=False)[0].square().mean()
    loss.backward()
    optimizer.step()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peer.answer({"seconds": seconds, "load_seconds": load_seconds, "peak_bytes": peak, "loss": loss.item()})
