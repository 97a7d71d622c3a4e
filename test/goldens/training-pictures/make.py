"""Reference cases of hyper-lora's picture branch (../training/HYPER_LORA.md): a gradient and a trajectory in which some items are predicted from pictures.

    python make.py      (torch, diffusers, transformers, peft, safetensors; on the CPU)

writes adapters/, tensors.safetensors and cases.json beside itself with the functions of ../training/make.py, whose format they have. Inputs beyond it:
  references        [.., B, 4, h, w], latents of a picture of each item's concept
  uses_reference    [.., B], 1 where the item's pairs are predicted from its picture, 0 where from the table
The losses are the diffusion loss alone; gradients are those of its sum with the mean over items of the mean square of E(x) - stopgrad(code).
"""
import json
import math
import os
import shutil
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../training"))
sys.dont_write_bytecode = True

import torch
from safetensors.torch import save_file

import make as base
from make import HyperLora, NOISY_ADAM, batches, gradient_case, half, load_unet, randn, save_adapter, trajectory_case

silu = torch.nn.functional.silu


class PictureLora(HyperLora):
    """With the picture branch: two convolutions of stride 2, the mean over pixels, a linear layer."""

    def __init__(self, unet, channels, **sizes):
        super().__init__(unet, **sizes)
        first, second = channels
        convolution = lambda out, into: half(randn(out, into, 3, 3) / math.sqrt(9 * into))
        pictures = {"picture.0.weight": convolution(first, 4), "picture.0.bias": half(0.1 * randn(first)),
                    "picture.1.weight": convolution(second, first), "picture.1.bias": half(0.1 * randn(second)),
                    "picture.2.weight": half(randn(sizes["code"], second) / math.sqrt(second)), "picture.2.bias": half(0.1 * randn(sizes["code"]))}
        self.trained |= {key: value.requires_grad_(True) for key, value in pictures.items()}

    def embed(self, latents):
        t = self.trained
        for name in ("picture.0", "picture.1"):
            latents = silu(torch.nn.functional.conv2d(latents, t[f"{name}.weight"], t[f"{name}.bias"], stride=2, padding=1))
        return latents.mean(dim=(2, 3)) @ t["picture.2.weight"].T + t["picture.2.bias"]

    def start(self, batch):
        """The codes of a batch's items, and the distance of the pictures' from the table's."""
        table = self.trained["codes"][batch["concepts"]]
        pictures = self.embed(batch["references"])
        self.codes = torch.where(batch["uses_reference"][:, None] != 0, pictures, table)
        return ((pictures - table.detach()) ** 2).mean()

    def pair(self, name, module, role, block):
        t, codes = self.trained, self.codes
        x = torch.cat([codes, t["roles"][role].expand(len(codes), -1), t["blocks"][block].expand(len(codes), -1)], dim=1)
        h = silu(x @ t["trunk.0.weight"].T + t["trunk.0.bias"])
        h = h + silu(h @ t["trunk.1.weight"].T + t["trunk.1.bias"])
        a = (h @ t["head_a.weight"].T + t["head_a.bias"]).view(-1, self.inner, self.rank)
        b = (h @ t["head_b.weight"].T + t["head_b.bias"]).view(-1, self.rank, self.inner)
        out, into = module.weight.shape
        return self.fixed[f"p.{into}"] @ (t[f"a0.{name}"] + a), b @ self.fixed[f"q.{out}"]


class Distance(torch.autograd.Function):
    """Zero whose gradient is that of its argument: what is added to a loss so that its value stays that of the diffusion alone."""

    @staticmethod
    def forward(context, value):
        return torch.zeros_like(value)

    @staticmethod
    def backward(context, gradient):
        return gradient


def cases():
    sizes = {"concepts": 3, "code": 10, "embedding": 4, "hidden": 16, "inner": 8, "rank": 2}
    keep = lambda key: not key.startswith("a0.") or "mid_block" in key
    for name, steps in (("train-grad-hyper-lora-pictures", None), ("train-traj-hyper-lora-pictures", 5)):
        unet = load_unet("sd15")
        net = PictureLora(unet, (6, 12), **sizes)
        adapters = [{"file": save_adapter(name, {**net.trained, **net.fixed}), "kind": "hyper-lora", "weight": 1}]

        def predict(noisy, timesteps, batch, unet=unet, net=net):
            distance = net.start(batch)
            # The loss is the mean of squares over everything: its value is the prediction's, its gradient has the distance's beside it.
            base.diffusion_distance = Distance.apply(distance)
            return unet(noisy, timesteps, batch["encoder_hidden_states"]).sample

        lead = (3,) if steps is None else (steps, 3)
        inputs = batches("sd15", steps, batch=3, height=8, width=8)
        inputs["references"] = randn(*lead, 4, 8, 8)
        inputs["uses_reference"] = torch.tensor([1, 0, 1]) if steps is None else torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 1, 0], [0, 0, 0]])
        inputs["concepts"] = torch.tensor([2, 0, 0]) if steps is None else torch.tensor([[0, 1, 2], [2, 2, 1], [1, 0, 2], [2, 1, 0], [0, 0, 1]])
        params = {"predictionType": "epsilon", "method": "hyper-lora", "rank": sizes["rank"]}
        if steps is None:
            gradient_case(name, "sd15", adapters, params, inputs, net.trained, predict, "HYPER_LORA.md with its picture branch in PyTorch, end to end", keep)
        else:
            trajectory_case(name, "sd15", adapters, {**params, "steps": steps, "optimizer": NOISY_ADAM}, inputs, net.trained, predict,
                            "HYPER_LORA.md with its picture branch in PyTorch, torch.optim.AdamW", keep)


def with_distance(diffusion_loss):
    def loss(*args):
        value = diffusion_loss(*args)
        return value + base.diffusion_distance
    return loss


if __name__ == "__main__":
    os.chdir(HERE)
    shutil.rmtree("adapters", ignore_errors=True)
    os.makedirs("adapters")
    base.diffusion_loss = with_distance(base.diffusion_loss)
    cases()
    save_file(base.tensors, "tensors.safetensors")
    with open("cases.json", "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in base.cases) + "\n]\n")
    print(len(base.cases), "cases", os.path.getsize("tensors.safetensors") // 1024, "KB")
