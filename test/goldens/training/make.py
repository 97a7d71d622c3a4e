"""Reference cases of trainings that the public cases lack: whole trajectories of DreamBooth, IP-Adapter, SDXL and v-prediction LoRAs, the net that
predicts a LoRA (HYPER_LORA.md), convolution LoRA at every kind of convolution, and options of the optimiser and of the loss.

    python make.py      (torch, diffusers, transformers, peft, safetensors; on the CPU)

writes adapters/, tensors.safetensors and cases.json beside itself; the models are those of ../adapters. Everything is fp32 on the CPU from weights
rounded to fp16, by torch's autograd, AdamW and clip_grad_norm_ over diffusers', transformers' and peft's own modules.

The format is that of the public cases (../README.md). Params beyond it:
  optimizer.schedule       "constant" | "linear" | "cosine" to zero at the last step's end, after optimizer.warmupSteps of linear warm-up:
                           with s the step from 0, W the warm-up and N all steps, the factor of the rate is (s + 1) / W where s < W, else with
                           p = (s - W) / (N - W): 1 - p, or (1 + cos(pi p)) / 2
  ema                      decay of the averaged weights, the outputs `ema:<tensor>`, which start as the trained ones and follow after each step
  accumulation             batches a step: the leading dimension of inputs counts batches, a step's loss and gradient are the means of theirs
  noiseOffset              noise + noiseOffset * the input `offset_noise` [B, C, 1, 1] is what is mixed in and predicted
"""
import json
import math
import os
import shutil

import diffusers
import peft
import torch
import transformers
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

torch.set_num_threads(1)
HERE = os.path.dirname(os.path.abspath(__file__))
MODELS = "../adapters/models"
VERSIONS = f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}, peft {peft.__version__}: "
ADAM = {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.999], "weightDecay": 0.01, "eps": 1e-8, "clipNorm": 1.0}
# Where some gradients are no more than rounding noise: with a small epsilon such elements would move as far as all others.
NOISY_ADAM = {**ADAM, "eps": 1e-4}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
generator = torch.Generator().manual_seed(20261124)
tensors, cases = {}, []


def randn(*shape):
    return torch.randn(*shape, generator=generator)


def half(value):
    return value.half().float()


def load_unet(model):
    return UNet2DConditionModel.from_pretrained(f"{MODELS}/{model}/unet", torch_dtype=torch.float32).eval().requires_grad_(False)


def save_adapter(name, state):
    save_file({key: value.detach().half().contiguous() for key, value in state.items()}, f"adapters/{name}.safetensors")
    return f"adapters/{name}.safetensors"


# ---- the loss --------------------------------------------------------------------------------------------------------------------

def alphas(model):
    return DDPMScheduler.from_pretrained(f"{MODELS}/{model}/scheduler").alphas_cumprod


def diffusion_loss(model, params, batch, predict):
    noise = batch["noise"]
    if "noiseOffset" in params:
        noise = noise + params["noiseOffset"] * batch["offset_noise"]
    a = alphas(model)[batch["timesteps"]].view(-1, 1, 1, 1)
    noisy = a.sqrt() * batch["latents"] + (1 - a).sqrt() * noise
    v = params["predictionType"] == "v_prediction"
    target = a.sqrt() * noise - (1 - a).sqrt() * batch["latents"] if v else noise
    per_item = ((predict(noisy, batch["timesteps"], batch) - target) ** 2).mean(dim=(1, 2, 3))
    if "minSnrGamma" in params:
        snr = (a / (1 - a)).flatten()
        per_item = per_item * torch.minimum(snr, torch.full_like(snr, params["minSnrGamma"])) / (snr + 1 if v else snr)
    if "priorWeight" in params:
        return per_item[params["instance"]].mean() + params["priorWeight"] * per_item[params["class"]].mean()
    return per_item.mean()


def rate_factor(optimizer, step, steps):
    warmup = optimizer.get("warmupSteps", 0)
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / (steps - warmup)
    return {"constant": 1.0, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}[optimizer.get("schedule", "constant")]


# ---- cases -----------------------------------------------------------------------------------------------------------------------

def add(name, kind, model, adapters, params, inputs, expected, tolerances, reference, expected_json=None):
    for group, values in (("in", inputs), ("out", expected)):
        for key, value in values.items():
            value = value.detach().contiguous().clone()
            tensors[f"{name}/{group}.{key}"] = value.float() if value.is_floating_point() else value.int()
    cases.append({"name": name, "kind": kind, "model": f"{MODELS}/{model}", **({"adapters": adapters} if adapters else {}), "params": params,
                  "tensors": "tensors.safetensors", "inputs": {key: f"{name}/in.{key}" for key in inputs},
                  "expected": {key: f"{name}/out.{key}" for key in expected}, **({"expectedJson": expected_json} if expected_json else {}),
                  "tolerance": {"atol": max(t["atol"] for t in tolerances.values()), "rtol": 1e-3}, "tolerances": tolerances,
                  "reference": VERSIONS + reference})


def rounded(value):
    return float(f"{value:.3g}")


def gradient_case(name, model, adapters, params, inputs, trained, predict, reference, keep=lambda key: True):
    loss = diffusion_loss(model, params, inputs, predict)
    loss.backward()
    expected = {"loss": loss.view(1)} | {f"grad:{key}": value.grad for key, value in trained.items() if keep(key)}
    tolerances = {key: {"atol": rounded(1e-3 * value.abs().max().item() if key == "loss" else 3e-4 * value.abs().max().item()), "rtol": 1e-3}
                  for key, value in expected.items()}
    norms = {f"grad:{key}": rounded7(value.grad.norm().item()) for key, value in trained.items() if value.grad.norm() > 1e-6}
    norms = {"loss": rounded7(loss.item())} | norms
    everything = all(keep(key) for key in trained)
    add(name, "train-gradient", model, adapters, params, inputs, expected, tolerances, reference, None if everything else {"gradNorms": norms})


def rounded7(value):
    return float(f"{value:.7g}")


def trajectory_case(name, model, adapters, params, inputs, trained, predict, reference, keep=lambda key: True):
    optimizer = params["optimizer"]
    accumulation, steps = params.get("accumulation", 1), params["steps"]
    adam = torch.optim.AdamW(trained.values(), lr=optimizer["lr"], betas=optimizer["betas"], weight_decay=optimizer["weightDecay"], eps=optimizer["eps"])
    start = {key: value.detach().clone() for key, value in trained.items()}
    average = {key: value.clone() for key, value in start.items()}
    losses, norms = [], []
    for step in range(steps):
        adam.zero_grad()
        losses.append(0.0)
        for micro in range(accumulation):
            batch = {key: value[step * accumulation + micro] for key, value in inputs.items()}
            loss = diffusion_loss(model, params, batch, predict)
            (loss / accumulation).backward()
            losses[-1] += loss.item() / accumulation
        norms.append(torch.nn.utils.clip_grad_norm_(list(trained.values()), optimizer["clipNorm"]).item())
        adam.param_groups[0]["lr"] = optimizer["lr"] * rate_factor(optimizer, step, steps)
        adam.step()
        for key, value in trained.items():
            average[key].mul_(params.get("ema", 0)).add_(value.detach(), alpha=1 - params.get("ema", 0))
    kept = {f"final:{key}": (start[key], value) for key, value in trained.items() if keep(key)}
    if "ema" in params:
        kept |= {f"ema:{key}": (start[key], average[key]) for key in trained if keep(key)}
    expected = {"losses": torch.tensor(losses), "grad_norms": torch.tensor(norms)} | {key: value for key, (_, value) in kept.items()}
    tolerances = {"losses": {"atol": 1e-4, "rtol": 1e-3}, "grad_norms": {"atol": 1e-4, "rtol": 1e-3}}
    for key, (before, after) in kept.items():
        tolerances[key] = {"atol": rounded(max(1.5e-2 * (after - before).abs().max().item(), 1e-7)), "rtol": 1e-5}
    add(name, "train-trajectory", model, adapters, params, inputs, expected, tolerances, reference)


def batches(model, steps, batch=1, height=8, width=8, text=True, **more):
    config = load_unet(model).config
    lead = (batch,) if steps is None else (steps, batch)
    inputs = {"latents": randn(*lead, 4, height, width), "noise": randn(*lead, 4, height, width),
              "timesteps": torch.randint(0, 1000, lead, generator=generator)}
    if text:
        inputs["encoder_hidden_states"] = randn(*lead, 77, config.cross_attention_dim)
    if config.addition_embed_type == "text_time":
        inputs["text_embeds"] = randn(*lead, config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)
        inputs["time_ids"] = torch.tensor([64.0, 80, 0, 8, 64, 64]).expand(*lead, 6).clone()
    return {**inputs, **more}


# ---- LoRA ------------------------------------------------------------------------------------------------------------------------

def lora_unet(name, model, rank, alpha, targets):
    unet = load_unet(model)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=False))
    trained = {}
    with torch.no_grad():
        for key, value in unet.named_parameters():
            if ".lora_" in key:
                value.copy_(half(0.3 * randn(*value.shape) / math.sqrt(value[0].numel() if ".lora_A." in key else 1)))
                trained["unet." + key.replace(".default", "")] = value.requires_grad_(True)
    adapters = [{"file": save_adapter(name, trained), "kind": "lora", "weight": 1}]
    return unet, trained, adapters


def plain(unet):
    def predict(noisy, timesteps, batch):
        added = {key: batch[key] for key in ("text_embeds", "time_ids") if key in batch}
        return unet(noisy, timesteps, batch["encoder_hidden_states"], added_cond_kwargs=added).sample
    return predict


def lora(name, model="sd15", kind="trajectory", rank=2, alpha=3.0, targets=ATTENTION, steps=6, prediction="epsilon", keep=lambda key: True, batch=1,
         offset=None, optimizer=None, size=(8, 8), **more):
    unet, trained, adapters = lora_unet(name, model, rank, alpha, targets)
    params = {"rank": rank, "alpha": alpha, "predictionType": prediction, "method": "lora", "textEncoder": False, "mask": False, **more}
    if kind == "gradient":
        gradient_case(name, model, adapters, params, batches(model, None, batch, *size), trained, plain(unet), "peft LoRA in a diffusers UNet", keep)
        return
    inputs = batches(model, steps * more.get("accumulation", 1), batch, *size)
    if offset:
        params["noiseOffset"] = offset
        inputs["offset_noise"] = randn(*inputs["noise"].shape[:3], 1, 1)
    trajectory_case(name, model, adapters, {**params, "steps": steps, "optimizer": {**ADAM, **(optimizer or {})}}, inputs, trained, plain(unet),
                    "peft LoRA in a diffusers UNet, torch.optim.AdamW, clip_grad_norm_", keep)


def few(key):
    """Of the down blocks' first attention and of the middle."""
    return "mid_block" in key or "down_blocks.0.attentions.0" in key or "down_blocks.1.attentions.0" in key


def loras():
    lora("train-traj-lora-v", prediction="v_prediction", keep=few)
    lora("train-traj-lora-sdxl", model="sdxl", keep=few, size=(12, 16), optimizer=NOISY_ADAM)
    lora("train-grad-lora-sdxl", model="sdxl", kind="gradient", batch=2, keep=few, size=(12, 16))
    convolutions = ["conv_in", "conv_out", "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"]
    kept = ("conv_in", "conv_out", "down_blocks.0.resnets.0.", "down_blocks.1.resnets.0.conv_shortcut", "downsamplers", "upsamplers", "mid_block.resnets.1.conv2")
    lora("train-grad-lora-every-conv", kind="gradient", targets=convolutions, batch=2, keep=lambda key: any(part in key for part in kept))
    lora("train-traj-lora-linear-warmup", optimizer={"schedule": "linear", "warmupSteps": 2}, keep=few, targets=["to_q", "to_v"])
    lora("train-traj-lora-cosine", optimizer={"schedule": "cosine", "warmupSteps": 1}, keep=few, targets=["to_q", "to_v"])
    lora("train-traj-lora-ema", ema=0.8, keep=few, targets=["to_k", "to_out.0"])
    lora("train-traj-lora-accumulation", accumulation=2, steps=4, keep=few, targets=["to_k", "to_v"])
    lora("train-traj-lora-offset-minsnr", offset=0.1, minSnrGamma=5.0, steps=4, batch=2, keep=few, targets=["to_k", "to_v"])


# ---- DreamBooth ------------------------------------------------------------------------------------------------------------------

def dreambooth():
    """Everything trained. The first half of a batch are instances, the second class pictures."""
    unet, text = load_unet("sd15").requires_grad_(True), CLIPTextModel.from_pretrained(f"{MODELS}/sd15/text_encoder", torch_dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(f"{MODELS}/sd15/tokenizer")
    text.requires_grad_(True)
    trained = {f"unet.{key}": value for key, value in unet.named_parameters()}
    prefix = "" if next(iter(dict(text.named_parameters()))).startswith("text_model.") else "text_model."
    trained |= {f"text_encoder.{prefix}{key}": value for key, value in text.named_parameters()}

    def predict(noisy, timesteps, batch):
        return unet(noisy, timesteps, text(batch["input_ids"]).last_hidden_state).sample

    steps = 4
    inputs = batches("sd15", steps, batch=2, text=False)
    prompts = ["a photo of sks fox", "a photo of a fox"] * steps
    ids = tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    inputs["input_ids"] = ids.view(steps, 2, 77)
    kept = ("unet.conv_in.weight", "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", "unet.down_blocks.0.resnets.0.norm1.bias",
            "unet.time_embedding.linear_1.weight", "unet.up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj.weight",
            "unet.up_blocks.0.upsamplers.0.conv.weight", "unet.conv_out.bias",
            "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight", "text_encoder.text_model.encoder.layers.1.self_attn.v_proj.weight",
            "text_encoder.text_model.final_layer_norm.weight", "text_encoder.text_model.embeddings.position_embedding.weight")
    missing = [key for key in kept if key not in trained]
    assert not missing, missing
    optimizer = {**NOISY_ADAM, "lr": 1e-4}
    trajectory_case("train-traj-dreambooth", "sd15", None, {"predictionType": "epsilon", "priorWeight": 0.7, "method": "dreambooth", "textEncoder": True,
                    "instance": [0], "class": [1], "steps": steps, "optimizer": optimizer}, inputs, trained, predict,
                    "all weights of a diffusers UNet and a transformers CLIP text encoder, torch.optim.AdamW, clip_grad_norm_", lambda key: key in kept)


# ---- IP-Adapter ------------------------------------------------------------------------------------------------------------------

def ip_adapter():
    file = f"{MODELS}/ip-adapter/ip-adapter-base.safetensors"
    state = {key: value.float() for key, value in load_file(file).items()}
    unet = load_unet("sd15")
    part = lambda name: {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    unet._load_ip_adapter_weights([{"image_proj": part("image_proj"), "ip_adapter": part("ip_adapter")}])
    unet.requires_grad_(False)
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    trained = {"image_proj.proj.weight": projection.image_embeds.weight, "image_proj.proj.bias": projection.image_embeds.bias,
               "image_proj.norm.weight": projection.norm.weight, "image_proj.norm.bias": projection.norm.bias}
    # The order in which diffusers reads the released file: its processors' own.
    number = 1
    for name, processor in unet.attn_processors.items():
        if name.endswith("attn2.processor"):
            trained |= {f"ip_adapter.{number}.to_k_ip.weight": processor.to_k_ip[0].weight, f"ip_adapter.{number}.to_v_ip.weight": processor.to_v_ip[0].weight}
            number += 2
    for key, value in trained.items():
        assert torch.equal(value, state[key]), key
        value.requires_grad_(True)

    def predict(noisy, timesteps, batch):
        return unet(noisy, timesteps, batch["encoder_hidden_states"], added_cond_kwargs={"image_embeds": [batch["image_embeds"]]}).sample

    steps = 5
    inputs = batches("sd15", steps, batch=2)
    # The last item of every other step has its picture dropped: zeros.
    inputs["image_embeds"] = randn(steps, 2, 1, 20)
    inputs["image_embeds"][::2, 1] = 0
    params = {"predictionType": "epsilon", "method": "ip-adapter", "variant": "base", "scale": 1.0, "steps": steps, "optimizer": ADAM}
    trajectory_case("train-traj-ip-adapter", "sd15", [{"file": file, "kind": "ip-adapter", "weight": 1}], params, inputs, trained, predict,
                    "image projection, keys and values of diffusers' IP-Adapter, torch.optim.AdamW, clip_grad_norm_")


# ---- hyper-lora ------------------------------------------------------------------------------------------------------------------

def orthonormal(rows, columns):
    """Orthonormal columns, or rows where there are fewer of these."""
    q, _ = torch.linalg.qr(randn(max(rows, columns), min(rows, columns)).double())
    q = q.to(torch.float32)
    return half(q if rows >= columns else q.T)


class HyperLora:
    """The formula of HYPER_LORA.md, in a UNet whose projections are wrapped."""

    def __init__(self, unet, concepts, code, embedding, hidden, inner, rank):
        self.inner, self.rank = inner, rank
        blocks = {}
        modules = dict(unet.named_modules())
        order = [name for start in ("down_blocks", "mid_block", "up_blocks") for name in modules if name.startswith(start)]
        self.projections = []
        for name in order:
            for attention in ("attn1", "attn2"):
                for number, projection in enumerate(ATTENTION):
                    if name.endswith(f".{attention}.{projection}"):
                        block = name[: name.index(f".{attention}.")]
                        blocks.setdefault(block, len(blocks))
                        self.projections.append((name, modules[name], 4 * (attention == "attn2") + number, blocks[block]))
        width = code + 2 * embedding
        linear = lambda out, into: half(randn(out, into) / math.sqrt(into))
        self.trained = {"codes": half(randn(concepts, code)), "roles": half(randn(8, embedding)), "blocks": half(randn(len(blocks), embedding)),
                        "trunk.0.weight": linear(hidden, width), "trunk.0.bias": half(0.1 * randn(hidden)),
                        "trunk.1.weight": linear(hidden, hidden), "trunk.1.bias": half(0.1 * randn(hidden)),
                        "head_a.weight": half(0.2 * linear(inner * rank, hidden)), "head_a.bias": half(0.05 * randn(inner * rank)),
                        "head_b.weight": half(0.1 * linear(inner * rank, hidden)), "head_b.bias": half(0.05 * randn(inner * rank))}
        self.fixed = {}
        for name, module, _, _ in self.projections:
            self.trained[f"a0.{name}"] = half(0.3 * randn(inner, rank))
            out, into = module.weight.shape
            if f"p.{into}" not in self.fixed:
                self.fixed[f"p.{into}"] = orthonormal(into, inner)
            if f"q.{out}" not in self.fixed:
                self.fixed[f"q.{out}"] = orthonormal(inner, out)
        for value in self.trained.values():
            value.requires_grad_(True)
        for projection in self.projections:
            self.wrap(*projection)

    def pair(self, name, module, role, block):
        t, silu = self.trained, torch.nn.functional.silu
        codes = t["codes"][self.concepts]
        x = torch.cat([codes, t["roles"][role].expand(len(codes), -1), t["blocks"][block].expand(len(codes), -1)], dim=1)
        h = silu(x @ t["trunk.0.weight"].T + t["trunk.0.bias"])
        h = h + silu(h @ t["trunk.1.weight"].T + t["trunk.1.bias"])
        a = (h @ t["head_a.weight"].T + t["head_a.bias"]).view(-1, self.inner, self.rank)
        b = (h @ t["head_b.weight"].T + t["head_b.bias"]).view(-1, self.rank, self.inner)
        out, into = module.weight.shape
        return self.fixed[f"p.{into}"] @ (t[f"a0.{name}"] + a), b @ self.fixed[f"q.{out}"]

    def wrap(self, name, module, role, block):
        forward = module.forward

        def changed(y):
            a, b = self.pair(name, module, role, block)
            return forward(y) + (y @ a) @ b
        module.forward = changed


def hyper_lora():
    sizes = {"concepts": 3, "code": 12, "embedding": 4, "hidden": 24, "inner": 16, "rank": 2}
    keep = lambda key: not key.startswith("a0.") or "mid_block" in key
    for name, steps in (("train-grad-hyper-lora", None), ("train-traj-hyper-lora", 6)):
        unet = load_unet("sd15")
        net = HyperLora(unet, **sizes)
        adapters = [{"file": save_adapter(name, {**net.trained, **net.fixed}), "kind": "hyper-lora", "weight": 1}]

        def predict(noisy, timesteps, batch, unet=unet, net=net):
            net.concepts = batch["concepts"]
            return unet(noisy, timesteps, batch["encoder_hidden_states"]).sample

        params = {"predictionType": "epsilon", "method": "hyper-lora", "rank": sizes["rank"]}
        inputs = batches("sd15", steps, batch=2)
        if steps is None:
            inputs["concepts"] = torch.tensor([2, 0])
            gradient_case(name, "sd15", adapters, params, inputs, net.trained, predict, "HYPER_LORA.md in PyTorch, end to end", keep)
        else:
            inputs["concepts"] = torch.tensor([[0, 1], [2, 2], [1, 0], [2, 1], [0, 0], [1, 2]])
            params |= {"steps": steps, "optimizer": NOISY_ADAM}
            trajectory_case(name, "sd15", adapters, params, inputs, net.trained, predict, "HYPER_LORA.md in PyTorch, torch.optim.AdamW", keep)


if __name__ == "__main__":
    os.chdir(HERE)
    shutil.rmtree("adapters", ignore_errors=True)
    os.makedirs("adapters")
    for make in (loras, dreambooth, ip_adapter, hyper_lora):
        make()
    save_file(tensors, "tensors.safetensors")
    with open("cases.json", "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
    print(len(cases), "cases", os.path.getsize("tensors.safetensors") // 1024, "KB")
