"""Reference cases of ControlNets, T2I-Adapters and IP-Adapters that the public cases lack, computed by diffusers and transformers.

python make.py, in this folder, beside ../base. Tiny nets with random weights, rounded to fp16; references are fp32 on the CPU.
"""
import json, os, shutil
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from diffusers import ControlNetModel, ControlNetUnionModel, T2IAdapter, UNet2DConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

torch.set_num_threads(1)
here = os.path.dirname(os.path.abspath(__file__))
os.chdir(here)
generator = torch.Generator().manual_seed(20261123)
cases, tensors = [], {}


def randn(*shape):
    return torch.randn(*shape, generator=generator)


def base(name):
    return UNet2DConditionModel.from_pretrained(f"../base/models/{name}/unet", torch_dtype=torch.float32).eval()


def randomise(module):
    """Weights of variance 1 / fan-in, also where a net starts from zeros, rounded to fp16."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim > 1:
                p.copy_(randn(*p.shape) / np.sqrt(p[0].numel()))
            elif "norm" in name or ".ln" in name:
                p.copy_((1.0 if name.endswith("weight") else 0.0) + 0.1 * randn(*p.shape))
            else:
                p.copy_(0.1 * randn(*p.shape))
            p.copy_(p.half().float())
    return module.eval()


def halves(state):
    return {k: v.half().contiguous() if v.is_floating_point() else v for k, v in state.items()}


def save_folder(path, module, variant=None, shards=1):
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    module.save_config(path)
    state = halves(module.state_dict())
    stem = "diffusion_pytorch_model" + (f".{variant}" if variant else "")
    if shards == 1:
        save_file(state, f"{path}/{stem}.safetensors")
        return
    names = sorted(state)
    index = {}
    for i in range(shards):
        part = {k: state[k] for k in names[i::shards]}
        file = f"diffusion_pytorch_model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, f"{path}/{file}")
        index.update({k: file for k in part})
    with open(f"{path}/diffusion_pytorch_model.safetensors.index.json", "w") as f:
        json.dump({"metadata": {}, "weight_map": index}, f, indent=1)


def case(name, kind, model, adapters, params, inputs, expected, reference):
    tolerances = {}
    for group, values in (("in", inputs), ("out", expected)):
        for key, value in values.items():
            tensors[f"{name}.{group}.{key}"] = value.detach().float().contiguous()
    for key, value in expected.items():
        tolerances[key] = {"atol": float(f"{1e-4 * value.abs().max().item():.3g}"), "rtol": 3e-4}
    cases.append(dict(
        name=name, kind=kind, model=f"../base/models/{model}", adapters=adapters, params=params, tensors="tensors.safetensors",
        inputs={k: f"{name}.in.{k}" for k in inputs}, expected={k: f"{name}.out.{k}" for k in expected},
        tolerance={"atol": max(t["atol"] for t in tolerances.values()), "rtol": 3e-4}, tolerances=tolerances, reference=reference))


def unet_inputs(unet, batch=2, height=8, width=8):
    c = unet.config
    inputs = dict(sample=randn(batch, c.in_channels, height, width), timestep=torch.tensor([841.0, 17.0][:batch]),
                  encoder_hidden_states=randn(batch, 77, c.cross_attention_dim))
    if c.addition_embed_type == "text_time":
        ids = torch.tensor([[64.0, 64, 0, 0, 64, 64], [48.0, 80, 4, 8, 64, 64]][:batch])
        inputs["text_embeds"] = randn(batch, c.projection_class_embeddings_input_dim - 6 * c.addition_time_embed_dim)
        inputs["time_ids"] = ids
    return inputs


def added(inputs, **more):
    own = {k: inputs[k] for k in ("text_embeds", "time_ids") if k in inputs}
    return {**own, **more}


def predict(unet, inputs, **more):
    extra = more.pop("added", {})
    with torch.no_grad():
        return unet(inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"],
                    added_cond_kwargs=added(inputs, **extra), **more).sample


# --- ControlNet -------------------------------------------------------------------------------------------------------------

def control_case(name, model, unet, net, adapter, cond=None, params=None, mode=None, weight=0.7, guess=False, inputs=None, reference=""):
    inputs = inputs or unet_inputs(unet)
    batch, _, h, w = inputs["sample"].shape
    factor = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
    cond = torch.rand(batch, 3, h * factor, w * factor, generator=generator) if cond is None else cond
    with torch.no_grad():
        kwargs = dict(conditioning_scale=weight, guess_mode=guess, added_cond_kwargs=added(inputs), return_dict=False)
        if mode is None:
            down, mid = net(inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"], cond, **kwargs)
        else:
            switch = torch.zeros(batch, net.config.num_control_type)
            switch[:, mode] = 1
            down, mid = net(inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"], [cond], switch, [mode], **kwargs)
    noise = predict(unet, inputs, down_block_additional_residuals=down, mid_block_additional_residual=mid)
    expected = {f"down_{i}": d for i, d in enumerate(down)} | {"mid": mid, "noise_pred": noise}
    case(name, "controlnet", model, [dict(file=adapter, kind="controlnet", weight=weight)],
         {"conditioningScale": [weight], **({"guessMode": True} if guess else {}), **({"controlMode": [mode]} if mode is not None else {}), **(params or {})},
         {**inputs, "controlnet_cond": cond}, expected, reference)


def original_names(state, unet):
    """diffusers' names as the original release's, for the encoder of a UNet and what a ControlNet has beside it."""
    levels, layers = len(unet.config.block_out_channels), unet.config.layers_per_block
    blocks, index = {}, 1
    for i in range(levels):
        for j in range(layers):
            blocks[f"down_blocks.{i}.resnets.{j}."] = f"input_blocks.{index}.0."
            blocks[f"down_blocks.{i}.attentions.{j}."] = f"input_blocks.{index}.1."
            index += 1
        if i < levels - 1:
            blocks[f"down_blocks.{i}.downsamplers.0.conv."] = f"input_blocks.{index}.0.op."
            index += 1
    blocks |= {"conv_in.": "input_blocks.0.0.", "time_embedding.linear_1.": "time_embed.0.", "time_embedding.linear_2.": "time_embed.2.",
               "add_embedding.linear_1.": "label_emb.0.0.", "add_embedding.linear_2.": "label_emb.0.2.", "mid_block.resnets.0.": "middle_block.0.",
               "mid_block.attentions.0.": "middle_block.1.", "mid_block.resnets.1.": "middle_block.2.", "controlnet_mid_block.": "middle_block_out.0.",
               "controlnet_cond_embedding.conv_in.": "input_hint_block.0."}
    hints = len([k for k in state if k.startswith("controlnet_cond_embedding.blocks.") and k.endswith("weight")])
    blocks |= {f"controlnet_cond_embedding.blocks.{i}.": f"input_hint_block.{2 * i + 2}." for i in range(hints)}
    blocks |= {"controlnet_cond_embedding.conv_out.": f"input_hint_block.{2 * hints + 2}."}
    blocks |= {f"controlnet_down_blocks.{i}.": f"zero_convs.{i}.0." for i in range(40)}
    inner = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3",
             "conv_shortcut": "skip_connection"}
    out = {}
    for key, value in state.items():
        prefix = max((p for p in blocks if key.startswith(p)), key=len, default="")
        rest = key[len(prefix):]
        if ".resnets." in prefix:
            part, end = rest.rsplit(".", 1)
            rest = f"{inner[part]}.{end}"
        out[blocks.get(prefix, prefix) + rest] = value
    return out


def control_nets():
    hint = (4, 8, 8, 12)
    sdxl = base("sdxl")
    net = randomise(ControlNetModel.from_unet(sdxl, conditioning_embedding_out_channels=hint))
    save_folder("models/controlnet-sdxl", net, shards=2)
    control_case("controlnet-sdxl-shards", "sdxl", sdxl, net, "models/controlnet-sdxl", reference="diffusers ControlNetModel with added conditions; weights in two shards")
    single = original_names(halves(net.state_dict()), sdxl)
    save_file(single, "models/controlnet-sdxl-original.safetensors")
    control_case("controlnet-sdxl-original", "sdxl", sdxl, net, "models/controlnet-sdxl-original.safetensors", guess=True, inputs=unet_inputs(sdxl, 1, 6, 9),
                 reference="diffusers ControlNetModel; the file has the original layout without prefix or config: heads come from the base")
    sd21 = base("sd21")
    net = randomise(ControlNetModel.from_unet(sd21, conditioning_embedding_out_channels=hint, controlnet_conditioning_channel_order="bgr"))
    save_folder("models/controlnet-sd21-bgr", net, variant="fp16")
    control_case("controlnet-sd21-bgr", "sd21", sd21, net, "models/controlnet-sd21-bgr", reference="diffusers ControlNetModel, linear projections, channel order bgr, fp16 variant")
    sd15 = base("sd15")
    net = randomise(ControlNetModel.from_unet(sd15, conditioning_embedding_out_channels=hint))
    own = sd15.state_dict()
    with torch.no_grad():
        state = halves(net.state_dict())
        difference = {k: ((state[k].float() - own[k]) if k in own else state[k].float()).half() for k in state}
        net.load_state_dict({k: (difference[k].float() + own[k]) if k in own else difference[k].float() for k in state})
    named = {f"control_model.{k}": v for k, v in original_names(difference, sd15).items()}
    save_file(named | {"difference": torch.zeros(0, dtype=torch.uint8)}, "models/controlnet-difference.safetensors")
    control_case("controlnet-difference", "sd15", sd15, net, "models/controlnet-difference.safetensors",
                 reference="diffusers ControlNetModel over the base's weights plus the file's, as A1111 reads files with the key difference")
    union = randomise(ControlNetUnionModel.from_unet(sdxl, conditioning_embedding_out_channels=hint, controlnet_conditioning_channel_order="rgb")
                      if False else ControlNetUnionModel(**union_config(sdxl, hint)))
    save_folder("models/controlnet-union", union)
    # The reference's attention runs over the batch: the two halves of one picture's guidance, which differ in their text alone.
    inputs = unet_inputs(sdxl)
    inputs["sample"] = inputs["sample"][:1].repeat(2, 1, 1, 1)
    inputs["timestep"] = inputs["timestep"][:1].repeat(2)
    cond = torch.rand(1, 3, 64, 64, generator=generator).repeat(2, 1, 1, 1)
    control_case("controlnet-union", "sdxl", sdxl, union, "models/controlnet-union", mode=3, inputs=inputs, cond=cond, reference="diffusers ControlNetUnionModel, one control")
    save_file(halves(union.state_dict()), "models/controlnet-union-single.safetensors")
    control_case("controlnet-union-single", "sdxl", sdxl, union, "models/controlnet-union-single.safetensors", mode=0, inputs=unet_inputs(sdxl, 1), guess=True,
                 reference="the same net; the file has no config: its geometry comes from the base and its shapes")


def union_config(unet, hint):
    c = unet.config
    return dict(in_channels=4, down_block_types=c.down_block_types, block_out_channels=c.block_out_channels, layers_per_block=c.layers_per_block,
                norm_num_groups=c.norm_num_groups, cross_attention_dim=c.cross_attention_dim, transformer_layers_per_block=c.transformer_layers_per_block,
                attention_head_dim=c.attention_head_dim, use_linear_projection=c.use_linear_projection, addition_embed_type="text_time",
                addition_time_embed_dim=c.addition_time_embed_dim, projection_class_embeddings_input_dim=c.projection_class_embeddings_input_dim,
                conditioning_embedding_out_channels=hint, num_control_type=5, num_trans_channel=c.block_out_channels[0], num_trans_head=2,
                num_trans_layer=2, num_proj_channel=c.block_out_channels[0])


# --- T2I-Adapter ------------------------------------------------------------------------------------------------------------

def t2i_case(name, model, unet, adapter, file, channels=3, params=None, size=(8, 8), reference=""):
    inputs = unet_inputs(unet, 2, *size)
    cond = torch.rand(2, channels, size[0] * 8, size[1] * 8, generator=generator)
    with torch.no_grad():
        features = [f * 0.8 for f in adapter(cond)]
    noise = predict(unet, inputs, down_intrablock_additional_residuals=[f.clone() for f in features])
    case(name, "t2i-adapter", model, [dict(file=file, kind="t2i-adapter", weight=0.8)], {"conditioningScale": [0.8], **(params or {})},
         {**inputs, "t2i_cond": cond}, {f"feature_{i}": f for i, f in enumerate(features)} | {"noise_pred": noise}, reference)


def t2i_adapters():
    sd15, sdxl = base("sd15"), base("sdxl")
    xl = randomise(T2IAdapter(channels=[*sdxl.config.block_out_channels, sdxl.config.block_out_channels[-1]], downscale_factor=16, adapter_type="full_adapter_xl"))
    save_folder("models/t2i-xl", xl, variant="fp16")
    t2i_case("t2i-adapter-xl", "sdxl", sdxl, xl, "models/t2i-xl", reference="diffusers T2IAdapter (full_adapter_xl), whose last feature goes to the middle block")
    widths = list(sd15.config.block_out_channels)
    full = randomise(T2IAdapter(in_channels=1, channels=widths, adapter_type="full_adapter"))
    flat = {}
    for key, value in halves(full.state_dict()).items():
        key = key.removeprefix("adapter.")
        parts = key.split(".")
        if parts[0] == "body" and parts[2] == "resnets":
            key = ".".join(["body", str(int(parts[1]) * 2 + int(parts[3])), *parts[4:]])
        elif parts[0] == "body":
            key = ".".join(["body", str(int(parts[1]) * 2), *parts[2:]])
        flat[key] = value
    save_file(flat, "models/t2i-original.safetensors")
    # 8 x 12 latents: the lowest level has 1 x 2.
    t2i_case("t2i-adapter-original-grey", "sd15", sd15, full, "models/t2i-original.safetensors", channels=1, size=(8, 12),
             reference="diffusers T2IAdapter (full_adapter) of one channel; the file has the original layout and no config")
    light = randomise(T2IAdapter(channels=widths[:3], num_res_blocks=3, adapter_type="light_adapter"))
    save_folder("models/t2i-light", light)
    t2i_case("t2i-adapter-light", "sd15", sd15, light, "models/t2i-light", reference="diffusers T2IAdapter (light_adapter)")
    renamed = {k.removeprefix("adapter.").replace(".resnets.", ".body."): v for k, v in halves(light.state_dict()).items()}
    save_file(renamed, "models/t2i-light-original.safetensors")
    t2i_case("t2i-adapter-light-original", "sd15", sd15, light, "models/t2i-light-original.safetensors", size=(10, 6),
             reference="the same net under the original layout's names, without config; odd sizes below")


# --- IP-Adapter -------------------------------------------------------------------------------------------------------------

def vision():
    config = CLIPVisionConfig(hidden_size=24, intermediate_size=40, projection_dim=20, num_hidden_layers=3, num_attention_heads=3, image_size=30,
                              patch_size=8, hidden_act="quick_gelu")
    model = randomise(CLIPVisionModelWithProjection(config))
    folder = "models/image_encoder"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    with open(f"{folder}/config.json", "w") as f:
        json.dump(config.to_dict() | {"architectures": ["CLIPVisionModelWithProjection"]}, f, indent=1, default=str)
    state = halves(model.state_dict())
    if not any(k.startswith("vision_model.") for k in state):
        state = {k if k.startswith("visual_projection") else f"vision_model.{k}": v for k, v in state.items()}
    save_file(state, f"{folder}/model.safetensors")
    return model


def matrix(*shape):
    return (randn(*shape) / np.sqrt(shape[-1])).half()


def norm(name, width):
    return {f"{name}.weight": (1 + 0.1 * randn(width)).half(), f"{name}.bias": (0.1 * randn(width)).half()}


def linear(name, out, width, bias=True):
    return {f"{name}.weight": matrix(out, width), **({f"{name}.bias": (0.1 * randn(out)).half()} if bias else {})}


def attention_widths(unet):
    """(query width, cross width) of every attention, in the order of attn_processors: down, up, mid; attn1 before attn2."""
    modules = dict(unet.named_modules())
    return [modules[name.removesuffix(".processor")] for name in unet.attn_processors]


def ip_layers(unet):
    state = {}
    for i, attn in enumerate(attention_widths(unet)):
        if i % 2 == 1:
            width = attn.to_q.weight.shape[0]
            state[f"{i}.to_k_ip.weight"] = matrix(width, unet.config.cross_attention_dim)
            state[f"{i}.to_v_ip.weight"] = matrix(width, unet.config.cross_attention_dim)
    return state


def resampler(prefix, image_width, width, out, depth, heads, queries=None):
    state = {**linear(f"{prefix}proj_in", width, image_width), **linear(f"{prefix}proj_out", out, width), **norm(f"{prefix}norm_out", out)}
    if queries:
        state[f"{prefix}latents"] = randn(1, queries, width).half()
    for i in range(depth):
        p = f"{prefix}layers.{i}"
        state |= {**norm(f"{p}.0.norm1", width), **norm(f"{p}.0.norm2", width), f"{p}.0.to_q.weight": matrix(heads * 64, width),
                  f"{p}.0.to_kv.weight": matrix(2 * heads * 64, width), f"{p}.0.to_out.weight": matrix(width, heads * 64),
                  **norm(f"{p}.1.0", width), f"{p}.1.1.weight": matrix(4 * width, width), f"{p}.1.3.weight": matrix(width, 4 * width)}
    return state


def save_ip(file, state):
    flat = {f"{part}.{k}": v for part, values in state.items() for k, v in values.items()}
    if file.endswith(".bin"):
        torch.save(state, file)
    else:
        save_file(flat, file)


def floats(state):
    return {part: {k: v.float() for k, v in values.items()} for part, values in state.items()}


def ip_case(name, model, file, state, encoder, images=1, faces=None, mask=None, shortcut=None, weight=0.6, size=(8, 8), reference=""):
    save_ip(file, state)
    unet = base(model)
    unet._load_ip_adapter_weights([floats({"image_proj": state["image_proj"], "ip_adapter": {k: v for k, v in state["ip_adapter"].items() if "lora" not in k}})],
                                  low_cpu_mem_usage=False)
    merge_lora(unet, state["ip_adapter"])
    unet.eval()
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [weight]
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    kind = type(projection).__name__
    inputs, expected, embeds, nothing = unet_inputs(unet, 2, *size), {}, None, None
    with torch.no_grad():
        if kind != "IPAdapterFaceIDImageProjection":
            inputs["pixel_values"] = randn(images, 3, 30, 30)
            out = encoder(inputs["pixel_values"], output_hidden_states=True)
            zero = encoder(torch.zeros_like(inputs["pixel_values"]), output_hidden_states=True)
            seen, unseen = (out.image_embeds, torch.zeros_like(out.image_embeds)) if kind == "ImageProjection" else (out.hidden_states[-2], zero.hidden_states[-2])
            expected["image_embeds"] = seen
            if kind != "ImageProjection":
                expected["image_embeds_uncond"] = unseen
            embeds, nothing = seen[None], unseen[None]
        if faces is not None:
            inputs["face_embeds"] = faces
        if mask is not None:
            inputs["mask"] = mask
        results = {}
        for label, pictures, face in (("", embeds, faces), ("_uncond", nothing, None if faces is None else torch.zeros_like(faces))):
            given = pictures if faces is None else face[None]
            if kind == "IPAdapterFaceIDPlusImageProjection":
                projection.clip_embeds = pictures.repeat(2, 1, 1, 1)
                projection.shortcut, projection.shortcut_scale = shortcut is not None, shortcut
            given = given.repeat(2, *[1] * (given.ndim - 1))
            tokens = unet.encoder_hid_proj([given])[0]
            results[f"image_tokens{label}"] = tokens.flatten(1, 2)[:1]
            masks = {} if mask is None else {"cross_attention_kwargs": {"ip_adapter_masks": [mask[None].repeat(1, images, 1, 1)]}}
            results[f"noise_pred{label}"] = predict(unet, inputs, added={"image_embeds": [given]}, **masks)
    case(name, "ip-adapter", model, [dict(file=file, kind="ip-adapter", weight=weight)],
         {"imageEncoder": "models/image_encoder", "images": images, **({"shortcut": shortcut} if shortcut is not None else {})}, inputs, {**expected, **results}, reference)


def merge_lora(unet, state):
    """FaceID's own attention processors add up(down(x)) to each projection: the same as adding the product to its weight."""
    with torch.no_grad():
        for i, attn in enumerate(attention_widths(unet)):
            for part, target in (("to_q", attn.to_q), ("to_k", attn.to_k), ("to_v", attn.to_v), ("to_out", attn.to_out[0])):
                if f"{i}.{part}_lora.down.weight" in state:
                    target.weight += state[f"{i}.{part}_lora.up.weight"].float() @ state[f"{i}.{part}_lora.down.weight"].float()


def face_loras(unet, rank=3):
    state = {}
    for i, attn in enumerate(attention_widths(unet)):
        for part, target in (("to_q", attn.to_q), ("to_k", attn.to_k), ("to_v", attn.to_v), ("to_out", attn.to_out[0])):
            out, width = target.weight.shape
            state[f"{i}.{part}_lora.down.weight"] = matrix(rank, width)
            state[f"{i}.{part}_lora.up.weight"] = (0.3 * matrix(out, rank).float()).half()
    return state


def ip_adapters():
    encoder = vision()
    sd15, sdxl = base("sd15"), base("sdxl")
    width, wide = sd15.config.cross_attention_dim, sdxl.config.cross_attention_dim
    by = "diffusers' loader, projection and attention; transformers CLIPVisionModelWithProjection"
    plain = {"image_proj": {**linear("proj", 4 * width, 20), **norm("norm", width)}, "ip_adapter": ip_layers(sd15)}
    # A wide mask over wide latents; its size is no multiple of theirs.
    mask = (torch.rand(1, 50, 100, generator=generator) > 0.4).float()
    ip_case("ip-adapter-masked", "sd15", "models/ip-base.safetensors", plain, encoder, mask=mask, size=(8, 16), reference=f"{by}; IPAdapterMaskProcessor.downsample")
    ip_case("ip-adapter-bin", "sd15", "models/ip-base.bin", plain, encoder, images=2, reference=f"{by}; the file is torch.save's")
    full = {"image_proj": {**linear("proj.0", 24, 24), **linear("proj.2", width, 24), **norm("proj.3", width)}, "ip_adapter": ip_layers(sd15)}
    ip_case("ip-adapter-full-face", "sd15", "models/ip-full.safetensors", full, encoder, images=2, reference=by)
    xl = {"image_proj": {**linear("proj", 4 * wide, 20), **norm("norm", wide)}, "ip_adapter": ip_layers(sdxl)}
    ip_case("ip-adapter-sdxl", "sdxl", "models/ip-sdxl.safetensors", xl, encoder, reference=by)
    plus = {"image_proj": resampler("", 24, 28, wide, 4, 2, queries=6), "ip_adapter": ip_layers(sdxl)}
    ip_case("ip-adapter-plus-sdxl", "sdxl", "models/ip-plus-sdxl.safetensors", plus, encoder, images=2, reference=by)
    face = {"image_proj": {**linear("proj.0", 32, 16), **linear("proj.2", 4 * width, 32), **norm("norm", width)}, "ip_adapter": {**ip_layers(sd15), **face_loras(sd15)}}
    ip_case("ip-adapter-faceid", "sd15", "models/ip-faceid.safetensors", face, encoder, faces=randn(1, 16), reference=f"{by}; LoRA by its formula")
    face = {"image_proj": {**linear("proj.0", 32, 16), **linear("proj.2", 4 * width, 32), **norm("norm", width), **resampler("perceiver_resampler.", 24, width, width, 4, 1)},
            "ip_adapter": {**ip_layers(sd15), **face_loras(sd15)}}
    ip_case("ip-adapter-faceid-plus", "sd15", "models/ip-faceid-plus.safetensors", face, encoder, faces=randn(1, 16), reference=f"{by}; LoRA by its formula")
    ip_case("ip-adapter-faceid-plusv2", "sd15", "models/ip-faceid-plus.safetensors", face, encoder, faces=randn(1, 16), shortcut=0.8, reference=f"{by}; shortcut with s_scale 0.8")


# --- CLIP's preprocessing, for test/gpu-runner/adapters/clip-preprocess.test.ts ----------------------------------------------

def preprocessing():
    from PIL import Image
    from transformers import CLIPImageProcessorPil
    random = np.random.default_rng(7)
    out = {}
    for name, (height, width), size in (("down", (61, 97), 24), ("far-down", (47, 180), 16), ("tall", (180, 47), 16), ("up", (11, 15), 32), ("exact", (20, 20), 20)):
        smooth = np.add.outer(np.linspace(0, 180, height), np.linspace(0, 75, width))[..., None]
        picture = np.clip(smooth + random.normal(0, 60, (height, width, 3)), 0, 255).astype(np.uint8)
        processor = CLIPImageProcessorPil(size=size, crop_size=size)
        values = processor(Image.fromarray(picture), return_tensors="pt").pixel_values
        out[f"{name}.picture"] = torch.from_numpy(picture.astype(np.float32))
        out[f"{name}.pixel_values"] = values.float().contiguous()
    save_file(out, "clip-preprocess.safetensors")


if __name__ == "__main__":
    shutil.rmtree("models", ignore_errors=True)
    os.makedirs("models")
    control_nets()
    t2i_adapters()
    ip_adapters()
    preprocessing()
    save_file(tensors, "tensors.safetensors")
    with open("cases.json", "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
    print(len(cases), "cases")
