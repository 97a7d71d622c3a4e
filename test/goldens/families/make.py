"""Reference cases of families and layouts that the other folders lack: SDXL's refiner, an edit UNet, an SDXL inpainting UNet,
a latent consistency model, TAESD; shards, bf16, half-precision variants, single files with what published ones hold besides.

    python make.py      (torch, diffusers, transformers, safetensors; on the CPU)

writes models/, single/, tensors.safetensors and cases.json beside itself. Weights are random; references are fp32.
"""
import json
import os
import shutil

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import LatentConsistencyModelPipeline
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

torch.set_num_threads(1)
HERE = os.path.dirname(os.path.abspath(__file__))
VOCABULARY = 64
tensors, cases = {}, []


def randomise(model, seed, dtype):
    """Random weights of order one over the fan-in, rounded to the dtype that they are stored in."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            values = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
            parameter.copy_((values + (1 if parameter.dim() == 1 else 0) * 0.5).to(dtype).float())
    return model.eval()


def unet(**changes):
    config = dict(sample_size=8, layers_per_block=1, norm_num_groups=4, block_out_channels=(8, 16), attention_head_dim=2,
                  down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    return UNet2DConditionModel(**{**config, **changes})


def vae():
    return AutoencoderKL(block_out_channels=(4, 4, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=2,
                         up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1)


def text(kind, width, layers, activation, projection=16):
    return kind(CLIPTextConfig(vocab_size=VOCABULARY, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
                               num_attention_heads=2, hidden_act=activation, projection_dim=projection, eos_token_id=VOCABULARY - 1,
                               bos_token_id=VOCABULARY - 2, pad_token_id=1))


SCHEDULER = {"_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
             "timestep_spacing": "leading", "steps_offset": 1, "prediction_type": "epsilon"}


def stored(model, dtype):
    return {key: value.to(dtype).contiguous() for key, value in model.state_dict().items() if not key.endswith("position_ids")}


def write_json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")


def config_of(model):
    return json.loads(model.to_json_string()) if hasattr(model, "to_json_string") else json.loads(model.config.to_json_string())


def write_folder(name, parts, index):
    """parts: folder -> (model, [(file, tensors)])."""
    folder = os.path.join(HERE, "models", name)
    write_json(f"{folder}/model_index.json", index)
    write_json(f"{folder}/scheduler/scheduler_config.json", SCHEDULER)
    for part, (model, files) in parts.items():
        write_json(f"{folder}/{part}/config.json", config_of(model))
        for file, values in files:
            save_file(values, f"{folder}/{part}/{file}")
    for tokenizer in ("tokenizer", "tokenizer_2"):
        if index.get(tokenizer, [None])[0]:
            write_json(f"{folder}/{tokenizer}/tokenizer_config.json", {"model_max_length": 77})


# ---- the original layout -------------------------------------------------------------------------------------------------------

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}


def original_unet(model):
    levels, layers = len(model.config.block_out_channels), model.config.layers_per_block
    state, out = stored(model, torch.float32), {}
    fixed = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
             "time_embedding.linear_2": "time_embed.2", "time_embedding.cond_proj": "time_embed.cond_proj",
             "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    for key, value in state.items():
        words = key.split(".")
        if words[0] in ("down_blocks", "up_blocks", "mid_block"):
            if words[0] == "mid_block":
                kind, j, rest = words[1], int(words[2]), words[3:]
                place = f"middle_block.{ {'resnets': 2 * j, 'attentions': 1}[kind]}"
            else:
                i, kind, j, rest = int(words[1]), words[2], int(words[3]), words[4:]
                if words[0] == "down_blocks":
                    first = 1 + i * (layers + 1)
                    place = {"resnets": f"input_blocks.{first + j}.0", "attentions": f"input_blocks.{first + j}.1",
                             "downsamplers": f"input_blocks.{first + layers}.0"}[kind]
                else:
                    attends = model.config.up_block_types[i] == "CrossAttnUpBlock2D"
                    place = {"resnets": f"output_blocks.{i * (layers + 1) + j}.0", "attentions": f"output_blocks.{i * (layers + 1) + j}.1",
                             "upsamplers": f"output_blocks.{i * (layers + 1) + layers}.{2 if attends else 1}"}[kind]
            if kind == "resnets":
                rest = [RESNET[rest[0]], *rest[1:]]
            if kind == "downsamplers":
                rest = ["op", *rest[1:]]
            out[".".join([place, *rest])] = value
        else:
            prefix = next(name for name in fixed if key.startswith(name + "."))
            out[fixed[prefix] + key[len(prefix):]] = value
    assert levels == len(model.config.down_block_types)
    full = {f"model.diffusion_model.{key}": value for key, value in out.items()}
    # diffusers' own conversion is the judge of the names above; it does not know the guidance embedding.
    back = convert_ldm_unet_checkpoint(dict(full), {**model.config, "class_embed_type": None})
    for key, value in state.items():
        if "cond_proj" not in key:
            assert torch.equal(back[key], value), key
    return full


def original_vae(model):
    last, state, out = len(model.config.block_out_channels) - 1, stored(model, torch.float32), {}
    for key, value in state.items():
        words = key.split(".")
        if words[1:2] == ["down_blocks"]:
            tail = {"resnets": ["block", words[4]], "downsamplers": ["downsample"]}[words[3]]
            words = [words[0], "down", words[2], *tail, *words[5:]]
        elif words[1:2] == ["up_blocks"]:
            tail = {"resnets": ["block", words[4]], "upsamplers": ["upsample"]}[words[3]]
            words = [words[0], "up", str(last - int(words[2])), *tail, *words[5:]]
        elif words[1:2] == ["mid_block"]:
            block = "attn_1" if words[2] == "attentions" else f"block_{int(words[3]) + 1}"
            words = [words[0], "mid", block, *words[4:]]
        name = ".".join(words).replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if ".attn_1." in name:
            for now, before in {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
                name = name.replace(f".attn_1.{now}.", f".attn_1.{before}.")
            value = value[:, :, None, None] if value.dim() == 2 else value
        out[f"first_stage_model.{name}"] = value.contiguous()
    back = convert_ldm_vae_checkpoint(dict(out), model.config)
    for key, value in state.items():
        assert torch.equal(back[key].reshape(value.shape), value), key
    return out


def original_open_clip(model, prefix):
    state, out = stored(model, torch.float32), {}
    state = {key.removeprefix("text_model."): value for key, value in state.items()}
    names = {"embeddings.token_embedding.weight": "token_embedding.weight", "embeddings.position_embedding.weight": "positional_embedding",
             "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias"}
    for key, value in state.items():
        if key in names:
            out[names[key]] = value
        elif key == "text_projection.weight":
            out["text_projection"] = value.T.contiguous()
        elif not any(f".{part}_proj." in key for part in "qkv"):
            name = key.replace("encoder.layers", "transformer.resblocks").replace("layer_norm", "ln_").replace("self_attn", "attn")
            out[name.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")] = value
    for i in range(model.config.num_hidden_layers):
        for kind in ("weight", "bias"):
            pieces = [state[f"encoder.layers.{i}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            out[f"transformer.resblocks.{i}.attn.in_proj_{kind}"] = torch.cat(pieces)
    out["logit_scale"] = torch.tensor(4.6)
    return {prefix + key: value for key, value in out.items()}


def original_clip(model, prefix):
    return {prefix + key: value for key, value in stored(model, torch.float32).items()}


def write_single(name, values, dtype, configs):
    os.makedirs(f"{HERE}/single", exist_ok=True)
    save_file({key: value.to(dtype) if value.is_floating_point() else value for key, value in values.items()}, f"{HERE}/single/{name}.safetensors")
    write_json(f"{HERE}/single/{name}.json", configs)


# ---- cases ---------------------------------------------------------------------------------------------------------------------

def add(name, kind, model, params, inputs, expected):
    for group, values in (("in", inputs), ("out", expected)):
        for key, value in values.items():
            tensors[f"{name}/{group}/{key}"] = value.contiguous()
    atol = float(f"{3e-4 * max(float(value.float().std()) for value in expected.values()):.3g}")
    cases.append({"name": name, "kind": kind, "model": model, "params": params, "tensors": "tensors.safetensors",
                  "inputs": {key: f"{name}/in/{key}" for key in inputs}, "expected": {key: f"{name}/out/{key}" for key in expected},
                  "tolerance": {"atol": atol, "rtol": 1e-4}, "reference": REFERENCE})


import diffusers  # noqa: E402
import transformers  # noqa: E402

REFERENCE = (f"diffusers {diffusers.__version__}, transformers {transformers.__version__}, torch {torch.__version__}: "
             "random weights, fp32 forward on the CPU (test/goldens/families/make.py)")


@torch.no_grad()
def unet_case(name, path, model, seed, size=(2, 6, 7), guidance=None):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    batch, height, width = size
    inputs = {"sample": draw(batch, model.config.in_channels, height, width), "encoder_hidden_states": draw(batch, 9, model.config.cross_attention_dim)}
    timesteps, params, more = [float(981 - 400.5 * i) for i in range(batch)], {}, {}
    if model.config.addition_embed_type:
        ids = 5 if model.config.projection_class_embeddings_input_dim == 16 + 5 * model.config.addition_time_embed_dim else 6
        inputs["text_embeds"] = draw(batch, 16)
        inputs["time_ids"] = torch.tensor([[64.0, 48.0, 0.0, 8.0, 6.0 if ids == 5 else 64.0, 40.0][:ids]] * batch)
        more["added_cond_kwargs"] = {"text_embeds": inputs["text_embeds"], "time_ids": inputs["time_ids"]}
    if guidance:
        w = torch.tensor(guidance) - 1
        more["timestep_cond"] = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w, model.config.time_cond_proj_dim)
        params["guidance"] = guidance
    sample = model(inputs["sample"], torch.tensor(timesteps), inputs["encoder_hidden_states"], **more).sample
    add(name, "unet", path, {"timesteps": timesteps, **params}, inputs, {"sample": sample})


@torch.no_grad()
def text_case(name, path, model, component, seed):
    ids = torch.randint(0, VOCABULARY - 2, (2, 11), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    ids[0, 6:], ids[1, 9:] = VOCABULARY - 1, VOCABULARY - 1
    out = model(ids.long(), output_hidden_states=True)
    norm = getattr(model, "text_model", model).final_layer_norm
    states = out.hidden_states
    pooled = {"text_embeds": out.text_embeds} if hasattr(out, "text_embeds") else {"pooler_output": out.pooler_output}
    expected = {"last_hidden_state": out.last_hidden_state, "penultimate": states[-2], "penultimate_normed": norm(states[-2]),
                "skip2_normed": norm(states[-3]), **pooled}
    add(name, "text-encoder", path, {"component": component}, {"input_ids": ids}, expected)


@torch.no_grad()
def vae_cases(name, path, model, seed):
    generator = torch.Generator().manual_seed(seed)
    image, latents = torch.rand(1, 3, 24, 40, generator=generator) * 2 - 1, torch.randn(2, 4, 3, 2, generator=generator)
    posterior = model.encode(image).latent_dist
    add(f"{name}-encode", "vae-encode", path, {}, {"image": image}, {"mean": posterior.mean, "logvar": posterior.logvar})
    add(f"{name}-decode", "vae-decode", path, {}, {"latents": latents}, {"sample": model.decode(latents).sample})


@torch.no_grad()
def preview_case(name, path, model, seed):
    latents = 2 * torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(seed))
    add(name, "preview-decode", path, {}, {"latents": latents}, {"sample": model.decode(latents).sample})


def component(library, name):
    return [library, name]


def index(**changes):
    parts = {"unet": component("diffusers", "UNet2DConditionModel"), "vae": component("diffusers", "AutoencoderKL"),
             "text_encoder": component("transformers", "CLIPTextModel"), "tokenizer": component("transformers", "CLIPTokenizer"),
             "scheduler": component("diffusers", "EulerDiscreteScheduler")}
    return {"_class_name": "StableDiffusionPipeline", **parts, **changes}


def refiner():
    model = randomise(unet(block_out_channels=(8, 8, 16, 16), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                           up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16,
                           attention_head_dim=(1, 2, 4, 4), transformer_layers_per_block=2, use_linear_projection=True,
                           addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=16 + 5 * 4), 11, torch.float16)
    encoder = randomise(text(CLIPTextModelWithProjection, 16, 3, "gelu"), 12, torch.float16)
    autoencoder = randomise(vae(), 13, torch.float16)
    tiny = randomise(AutoencoderTiny(encoder_block_out_channels=(4,) * 4, decoder_block_out_channels=(6,) * 4, num_encoder_blocks=(1, 1, 1, 1),
                                     num_decoder_blocks=(2, 1, 1, 1)), 14, torch.float16)
    half = torch.float16
    write_folder("refiner", {
        "unet": (model, [("diffusion_pytorch_model.fp16.safetensors", stored(model, half))]),
        "vae": (autoencoder, [("diffusion_pytorch_model.safetensors", stored(autoencoder, half))]),
        "text_encoder_2": (encoder, [("model.fp16.safetensors", stored(encoder, half))]),
        "preview_decoder": (tiny, [("diffusion_pytorch_model.safetensors", stored(tiny, half))]),
    }, index(_class_name="StableDiffusionXLImg2ImgPipeline", text_encoder=[None, None], tokenizer=[None, None], requires_aesthetics_score=True,
             force_zeros_for_empty_prompt=False, text_encoder_2=component("transformers", "CLIPTextModelWithProjection"),
             tokenizer_2=component("transformers", "CLIPTokenizer")))
    write_single("refiner", {**original_unet(model), **original_vae(autoencoder), **original_open_clip(encoder, "conditioner.embedders.0.model.")},
                 torch.bfloat16, {"unet": config_of(model), "vae": config_of(autoencoder), "text_encoder_2": config_of(encoder), "scheduler": SCHEDULER})
    # TAESD's own layout counts the clamp before the first convolution as well.
    own = {}
    for key, value in stored(tiny, half).items():
        if key.startswith("decoder.layers."):
            number, rest = key.removeprefix("decoder.layers.").split(".", 1)
            own[f"{int(number) + 1}.{rest}"] = value
    save_file(own, f"{HERE}/single/refiner.preview.safetensors")
    unet_case("refiner-unet", "models/refiner", model, 21)
    text_case("refiner-text", "models/refiner", encoder, "text_encoder_2", 22)
    preview_case("refiner-preview", "models/refiner", tiny, 23)
    preview_case("refiner-single-preview", "single/refiner.safetensors", tiny, 23)
    for part, seed in ((model, 11), (encoder, 12), (autoencoder, 13)):
        randomise(part, seed, torch.float16)
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.copy_(parameter.to(torch.bfloat16).float())
    unet_case("refiner-single-unet", "single/refiner.safetensors", model, 24)
    text_case("refiner-single-text", "single/refiner.safetensors", encoder, "text_encoder_2", 25)
    vae_cases("refiner-single-vae", "single/refiner.safetensors", autoencoder, 26)


def edit():
    model = randomise(unet(in_channels=8, cross_attention_dim=12), 31, torch.bfloat16)
    encoder, autoencoder = randomise(text(CLIPTextModel, 12, 2, "quick_gelu"), 32, torch.float32), randomise(vae(), 33, torch.float64)
    values = list(stored(model, torch.bfloat16).items())
    half = len(values) // 2
    shards = {"diffusion_pytorch_model-00001-of-00002.safetensors": dict(values[:half]), "diffusion_pytorch_model-00002-of-00002.safetensors": dict(values[half:])}
    write_folder("edit", {
        "unet": (model, list(shards.items())),
        "vae": (autoencoder, [("diffusion_pytorch_model.safetensors", stored(autoencoder, torch.float64))]),
        "text_encoder": (encoder, [("model.safetensors", stored(encoder, torch.float32))]),
    }, index(_class_name="StableDiffusionInstructPix2PixPipeline"))
    write_json(f"{HERE}/models/edit/unet/diffusion_pytorch_model.safetensors.index.json",
               {"metadata": {"total_size": 1}, "weight_map": {key: file for file, part in shards.items() for key in part}})
    unet_case("edit-unet", "models/edit", model, 41)
    text_case("edit-text", "models/edit", encoder, "text_encoder", 42)
    vae_cases("edit-vae", "models/edit", autoencoder, 43)


def xl_inpaint():
    model = randomise(unet(in_channels=9, cross_attention_dim=28, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 3), use_linear_projection=True,
                           down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                           addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=16 + 6 * 4), 51, torch.float32)
    first, second = randomise(text(CLIPTextModel, 12, 2, "quick_gelu"), 52, torch.float32), randomise(text(CLIPTextModelWithProjection, 16, 3, "gelu"), 53, torch.float32)
    autoencoder = randomise(vae(), 54, torch.float32)
    values = {**original_unet(model), **original_vae(autoencoder), **original_clip(first, "conditioner.embedders.0.transformer.text_model."),
              **original_open_clip(second, "conditioner.embedders.1.model."), "denoiser.sigmas": torch.linspace(0, 1, 10)}
    write_single("xl-inpaint", values, torch.float32, {"unet": config_of(model), "vae": config_of(autoencoder), "text_encoder": config_of(first),
                                                       "text_encoder_2": config_of(second), "scheduler": SCHEDULER})
    unet_case("xl-inpaint-unet", "single/xl-inpaint.safetensors", model, 61)
    text_case("xl-inpaint-text", "single/xl-inpaint.safetensors", first, "text_encoder", 62)
    text_case("xl-inpaint-text-2", "single/xl-inpaint.safetensors", second, "text_encoder_2", 63)
    vae_cases("xl-inpaint-vae", "single/xl-inpaint.safetensors", autoencoder, 64)


def consistency():
    model = randomise(unet(cross_attention_dim=12, time_cond_proj_dim=6), 71, torch.float16)
    encoder, autoencoder = randomise(text(CLIPTextModel, 12, 2, "quick_gelu"), 72, torch.float16), randomise(vae(), 73, torch.float16)
    original = original_unet(model)
    copies = {f"model_ema.{key.removeprefix('model.').replace('.', '')}": value * 0 for key, value in list(original.items())[:4]}
    values = {**original, **original_vae(autoencoder), **original_clip(encoder, "cond_stage_model.transformer."), **copies,
              "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
              "cond_stage_model.transformer.embeddings.position_ids": torch.arange(77)[None], "alphas_cumprod": torch.linspace(1, 0, 10),
              "posterior_variance": torch.zeros(10), "global_step": torch.tensor(5)}
    write_single("consistency", values, torch.float16, {"unet": config_of(model), "vae": config_of(autoencoder), "text_encoder": config_of(encoder),
                                                        "scheduler": {**SCHEDULER, "_class_name": "LCMScheduler"}})
    unet_case("consistency-unet", "single/consistency.safetensors", model, 81, guidance=[8.5, 1.0])
    text_case("consistency-text", "single/consistency.safetensors", encoder, "text_encoder", 82)


for name in ("models", "single"):
    shutil.rmtree(f"{HERE}/{name}", ignore_errors=True)
for make in (refiner, edit, xl_inpaint, consistency):
    make()
save_file(tensors, f"{HERE}/tensors.safetensors")
with open(f"{HERE}/cases.json", "w") as file:
    file.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
print(f"{len(cases)} cases")
