"""Reference cases of LoRA layouts that the public cases lack, computed by peft's layers and saved by diffusers and peft.

python make.py, in this folder, beside ../adapters. Weights are rounded to fp16; references are fp32 on the CPU.
"""
import json, os, shutil
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
os.chdir(os.path.dirname(os.path.abspath(__file__)))
generator = torch.Generator().manual_seed(20261124)
cases, tensors = [], {}
shutil.rmtree("adapters", ignore_errors=True)


def unet():
    return UNet2DConditionModel.from_pretrained("../adapters/models/sd15/unet", torch_dtype=torch.float32).eval()


def randomise(model):
    """Every adapter tensor away from its neutral start, rounded to fp16; a magnitude near its own norm."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_magnitude_vector" in name:
                p.mul_(1 + 0.2 * torch.randn(p.shape, generator=generator))
            elif "lora_" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
            else:
                continue
            p.copy_(p.half().float())


def halves(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    state = {k: v.half().contiguous() for k, v in load_file(path).items()}
    save_file(state, path, metadata=header.get("__metadata__"))


def case(name, model, file, weight, layout, reference, **params):
    batch, size = 2, 16
    sample = torch.randn(batch, 4, size, size, generator=generator)
    states = torch.randn(batch, 77, model.config.cross_attention_dim, generator=generator)
    timestep = torch.tensor([731.0, 42.0])
    with torch.no_grad():
        noise_pred = model(sample, timestep, states).sample
    row = {"sample": sample, "timestep": timestep, "encoder_hidden_states": states}
    for key, value in row.items():
        tensors[f"{name}.{key}"] = value
    tensors[f"{name}.noise_pred"] = noise_pred
    cases.append({
        "name": name, "kind": "lora", "model": "../adapters/models/sd15",
        "adapters": [{"file": file, "kind": "lora", "weight": weight}],
        "params": {"layout": layout, **params}, "tensors": "tensors.safetensors",
        "inputs": {key: f"{name}.{key}" for key in row}, "expected": {"noise_pred": f"{name}.noise_pred"},
        "tolerance": {"atol": float(1e-4 * noise_pred.std()), "rtol": 3e-4}, "reference": reference,
    })


def diffusers_case(name, weight, reference, config, **params):
    model = unet()
    model.add_adapter(config)
    randomise(model)
    folder = f"adapters/{name}"
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(model),
                                              unet_lora_adapter_metadata=config.to_dict())
    file = f"{folder}/pytorch_lora_weights.safetensors"
    halves(file)
    model.set_adapters("default", weights=weight)
    case(name, model, file, weight, "diffusers", reference, **params)


diffusers_case("diffusers-metadata", 0.7, "peft's layers; alpha and ranks stand in the header's lora_adapter_metadata.",
               LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_v", "conv2"], rank_pattern={"attn2.to_v": 2},
                          alpha_pattern={"attn1.to_q": 3.0}, init_lora_weights=False))
diffusers_case("diffusers-metadata-rslora", -0.5, "peft's layers, alpha / sqrt(rank).",
               LoraConfig(r=5, lora_alpha=4, use_rslora=True, target_modules=["to_k", "ff.net.2"], init_lora_weights=False))
diffusers_case("diffusers-dora", 0.6, "peft's DoRA layers of linear layers and convolutions, weight within the norm.",
               LoraConfig(r=3, lora_alpha=3, use_dora=True, target_modules=["to_k", "to_out.0", "conv1", "proj_in"], init_lora_weights=False),
               doraWeight="peft")


def peft_case(name, weight, reference, config):
    model = unet()
    wrapped = get_peft_model(model, config)
    randomise(wrapped)
    folder = f"adapters/{name}"
    wrapped.save_pretrained(folder)
    halves(f"{folder}/adapter_model.safetensors")
    os.remove(f"{folder}/README.md")
    for module in wrapped.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(weight)
    case(name, wrapped.base_model.model, folder, weight, "peft-folder", reference)


peft_case("peft-lora-bias", 0.8, "peft's layers with lora_bias, whose bias is scaled as the product is.",
          LoraConfig(r=4, lora_alpha=2, lora_bias=True, target_modules=["ff.net.0.proj", "to_out.0", "time_emb_proj"],
                     init_lora_weights=False))
peft_case("peft-dora", 1.0, "peft's DoRA layers, saved by peft.",
          LoraConfig(r=2, lora_alpha=4, use_dora=True, target_modules=["to_q", "conv_shortcut"], init_lora_weights=False))

# Files of torch.save that only readers look at: the format before 1.6, and the ParameterDict of the first textual inversions.
os.makedirs("adapters/pickles")
rows = torch.arange(48, dtype=torch.float32).reshape(2, 24) / 8
entry = {"string_to_token": {"*": 265}, "name": "legacy", "step": 3}
torch.save({**entry, "string_to_param": {"*": rows}}, "adapters/pickles/before-zip.pt", _use_new_zipfile_serialization=False)
torch.save({**entry, "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(rows)})}, "adapters/pickles/parameter-dict.pt")
torch.save({**entry, "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(rows)})}, "adapters/pickles/before-zip-parameter-dict.pt",
           _use_new_zipfile_serialization=False)
torch.save({"<word>": rows[0]}, "adapters/pickles/learned_embeds.bin")

save_file({k: v.contiguous() for k, v in tensors.items()}, "tensors.safetensors")
with open("cases.json", "w") as out:
    out.write("[\n" + ",\n".join(json.dumps(row) for row in cases) + "\n]\n")
print(len(cases), "cases")
