"""Reference cases of whole pipelines that the other folders lack: instruct-edit, refiner hand-over, a second pass over enlarged latents,
inpainting with SDXL and with two-stage samplers.

    python make.py      (torch, diffusers, transformers, safetensors; on the CPU)

writes models/, tensors.safetensors and cases.json beside itself. The models are those of ../base, and two with their text encoders and VAEs but
random UNets of their own; references are fp32 runs of diffusers' pipelines, whose random draws are recorded in their order.
"""
import json
import os
import shutil
import sys

import diffusers
import torch
from diffusers import (AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, KDPM2AncestralDiscreteScheduler,
                       LMSDiscreteScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline,
                       StableDiffusionInstructPix2PixPipeline,
                       StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline,
                       UNet2DConditionModel)
from diffusers.utils import torch_utils
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

torch.set_num_threads(1)
HERE = os.path.dirname(os.path.abspath(__file__))
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "steps_offset": 1}
DDIM = {**CONFIG, "clip_sample": False, "set_alpha_to_one": False}
tensors, cases = {}, []
draws = []


def record(shape, generator=None, device=None, dtype=None, layout=None):
    draws.append(torch.randn(tuple(shape), generator=generator, dtype=torch.float32))
    return draws[-1]


def patch():
    original = torch_utils.randn_tensor
    for module in list(sys.modules.values()):
        if getattr(module, "randn_tensor", None) is original:
            module.randn_tensor = record


def components(folder, *names):
    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel,
               "text_encoder_2": CLIPTextModelWithProjection, "tokenizer": CLIPTokenizer, "tokenizer_2": CLIPTokenizer}
    path = os.path.join(HERE, folder)
    parts = {}
    for name in names:
        extra = {} if name.startswith("tokenizer") else {"torch_dtype": torch.float32}
        parts[name] = classes[name].from_pretrained(path, subfolder=name, **extra)
    return parts


def own_model(name, source, parts, class_name, index, **unet):
    """A folder with parts of another and a new small UNet in half precision."""
    target, origin = os.path.join(HERE, "models", name), os.path.join(HERE, source)
    shutil.rmtree(target, ignore_errors=True)
    for part in (*parts, "scheduler"):
        shutil.copytree(os.path.join(origin, part), os.path.join(target, part))
    torch.manual_seed(len(name))
    model = UNet2DConditionModel(sample_size=8, layers_per_block=1, norm_num_groups=4, block_out_channels=(8, 16), attention_head_dim=2,
                                 down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                                 up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **unet)
    with torch.no_grad():
        for parameter in model.parameters():
            # Default weights are too even: attention would do next to nothing.
            parameter.mul_(2)
    model.half().save_pretrained(os.path.join(target, "unet"))
    with open(os.path.join(origin, "model_index.json")) as file:
        given = json.load(file)
    kept = {key: value for key, value in given.items() if key in (*parts, "unet", "scheduler")}
    with open(os.path.join(target, "model_index.json"), "w") as file:
        json.dump({"_class_name": class_name, **kept, **index}, file, indent=1)


SD = ("unet", "vae", "text_encoder", "tokenizer")
XL = (*SD, "text_encoder_2", "tokenizer_2")


def pipeline(kind, folder, scheduler, names, **more):
    parts = components(folder, *names)
    if len(names) == 4 and "text_encoder" in names:
        more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False, **more}
    elif "text_encoder" not in names:
        more = {"text_encoder": None, "tokenizer": None, **more}
    pipe = kind(**parts, scheduler=scheduler, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(width, height, seed):
    return torch.rand((1, 3, height, width), generator=torch.Generator().manual_seed(seed))


def mask(width, height):
    values = torch.zeros(1, 1, height, width)
    values[:, :, height // 4:, width // 3:] = 1
    return values


def run(name, model, pipe, config, params, draw_names, image=None, area=None, start=None, **call):
    """Runs the pipeline once to latents and decodes them; writes a case of the latents and one of the picture."""
    draws.clear()
    generator = torch.Generator().manual_seed(len(cases) + 1)
    given = dict(call)
    if image is not None:
        given["image"] = image
    if area is not None:
        given["mask_image"] = area
    with torch.no_grad():
        latents = pipe(generator=generator, output_type="latent", **given).images
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    picture_out = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)[0]
    inputs = {}

    def put(key, value):
        tensors[f"{name}/{key}"] = value.contiguous().float()
        return f"{name}/{key}"

    if image is not None and image.shape[1] == 3:
        inputs["image"] = put("in.image", image[0].permute(1, 2, 0))
    if area is not None:
        inputs["mask"] = put("in.mask", area[0, 0])
    if start is not None:
        inputs[start] = put(f"in.{start}", image if image is not None else call["latents"])
    for key, value in zip(draw_names, draws):
        inputs[key] = put(f"in.{key}", value)
    rest = draws[len(draw_names):]
    if rest:
        inputs["stepNoises"] = put("in.stepNoises", torch.stack(rest))
    reference = f"diffusers {diffusers.__version__} {type(pipe).__name__}, draws recorded in order"
    for kind, value, share in (("latents", latents, 1e-3), ("image", picture_out, 4e-3)):
        cases.append({"name": name if kind == "latents" else f"{name}-image", "kind": "pipeline", "model": model,
                      "params": {**params, "scheduler": type(pipe.scheduler).__name__, "schedulerConfig": config},
                      "tensors": "tensors.safetensors", "inputs": inputs, "expected": {kind: put(f"out.{kind}", value)},
                      "tolerance": {"atol": float(f"{share * value.std().item():.3g}"), "rtol": 1e-3}, "reference": reference})
    return latents


def main():
    patch()
    size = {"width": 48, "height": 40}
    text = {"prompt": "a red fox in the snow, detailed", "negativePrompt": "blurry, low quality"}
    called = {"prompt": text["prompt"], "negative_prompt": text["negativePrompt"]}
    base = "../base/models"

    own_model("edit", f"{base}/sd15", ("vae", "text_encoder", "tokenizer"), "StableDiffusionInstructPix2PixPipeline", {},
              in_channels=8, cross_attention_dim=json.load(open(os.path.join(HERE, f"{base}/sd15/unet/config.json")))["cross_attention_dim"])
    width = json.load(open(os.path.join(HERE, f"{base}/sdxl/text_encoder_2/config.json")))
    own_model("refiner", f"{base}/sdxl", ("vae", "text_encoder_2", "tokenizer_2"), "StableDiffusionXLImg2ImgPipeline",
              {"text_encoder": [None, None], "tokenizer": [None, None], "requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False},
              cross_attention_dim=width["hidden_size"], addition_embed_type="text_time", addition_time_embed_dim=8,
              projection_class_embeddings_input_dim=5 * 8 + width["projection_dim"], use_linear_projection=True)

    # The edit model.
    for name, guidance, image_guidance in (("edit", 5.5, 1.5), ("edit-no-guidance", 1.0, 1.0)):
        pipe = pipeline(StableDiffusionInstructPix2PixPipeline, "models/edit", EulerDiscreteScheduler(**CONFIG), SD)
        run(name, "models/edit", pipe, CONFIG,
            {"task": "edit", **size, **text, "steps": 4, "guidanceScale": guidance, "imageGuidanceScale": image_guidance}, ["noise"],
            image=picture(48, 40, 1), **called, num_inference_steps=4, guidance_scale=guidance, image_guidance_scale=image_guidance)

    # The base hands over to the refiner.
    for share in (0.8, 0.5):
        steps = 5
        pipe = pipeline(StableDiffusionXLPipeline, f"{base}/sdxl", EulerDiscreteScheduler(**CONFIG), XL)
        left = run(f"base-until-{share}", f"{base}/sdxl", pipe, CONFIG,
                   {"task": "txt2img", **size, **text, "steps": steps, "guidanceScale": 5.5, "denoisingEnd": share}, ["latents"],
                   **called, num_inference_steps=steps, guidance_scale=5.5, denoising_end=share, **size)
        pipe = pipeline(StableDiffusionXLImg2ImgPipeline, "models/refiner", EulerDiscreteScheduler(**CONFIG),
                        ("unet", "vae", "text_encoder_2", "tokenizer_2"), requires_aesthetics_score=True, force_zeros_for_empty_prompt=False)
        run(f"refiner-from-{share}", "models/refiner", pipe, CONFIG,
            {"task": "img2img", **size, **text, "steps": steps, "guidanceScale": 5.5, "denoisingStart": share, "aestheticScore": 6.5,
             "negativeAestheticScore": 2.0}, [], image=left, start="latents",
            **called, num_inference_steps=steps, guidance_scale=5.5, denoising_start=share, aesthetic_score=6.5, negative_aesthetic_score=2.0)
    pipe = pipeline(StableDiffusionXLImg2ImgPipeline, "models/refiner", EulerDiscreteScheduler(**CONFIG),
                    ("unet", "vae", "text_encoder_2", "tokenizer_2"), requires_aesthetics_score=True, force_zeros_for_empty_prompt=False)
    run("refiner-img2img", "models/refiner", pipe, CONFIG,
        {"task": "img2img", **size, "prompt": text["prompt"], "steps": 6, "guidanceScale": 5.5, "strength": 0.5}, ["vaeNoise", "noise"],
        image=picture(48, 40, 2), prompt=text["prompt"], num_inference_steps=6, guidance_scale=5.5, strength=0.5)

    # A second pass over enlarged latents.
    small = torch.randn((1, 4, 5, 6), generator=torch.Generator().manual_seed(3))
    large = torch.nn.functional.interpolate(small, size=(8, 9), mode="bilinear", align_corners=False)
    pipe = pipeline(StableDiffusionImg2ImgPipeline, f"{base}/sd15", DDIMScheduler(**DDIM), SD)
    run("upscale-latent", f"{base}/sd15", pipe, DDIM,
        {"task": "img2img", "width": 72, "height": 64, **text, "steps": 6, "guidanceScale": 5.5, "strength": 0.6, "enlargedFrom": [5, 6]},
        ["noise"], image=large, start="cleanLatents", **called, num_inference_steps=6, guidance_scale=5.5, strength=0.6)
    tensors["upscale-latent/in.cleanLatents"] = small

    # Inpainting beside the base set's: SDXL, two-stage and ancestral samplers.
    pipe = pipeline(StableDiffusionXLInpaintPipeline, f"{base}/sdxl", EulerDiscreteScheduler(**CONFIG), XL)
    run("sdxl-inpaint", f"{base}/sdxl", pipe, CONFIG,
        {"task": "inpaint", **size, **text, "steps": 5, "guidanceScale": 5.5, "strength": 0.7}, ["vaeNoise", "noise", "maskedVaeNoise"],
        image=picture(48, 40, 4), area=mask(48, 40), **called, num_inference_steps=5, guidance_scale=5.5, strength=0.7, **size)
    for kind in (HeunDiscreteScheduler, KDPM2AncestralDiscreteScheduler):
        for strength in (0.6, 1.0):
            pipe = pipeline(StableDiffusionInpaintPipeline, f"{base}/sd15", kind(**CONFIG), SD)
            run(f"inpaint-{kind.__name__}-{strength}", f"{base}/sd15", pipe, CONFIG,
                {"task": "inpaint", **size, **text, "steps": 5, "guidanceScale": 5.5, "strength": strength},
                ["vaeNoise", "noise", "maskedVaeNoise"], image=picture(48, 40, 5), area=mask(48, 40), **called,
                num_inference_steps=5, guidance_scale=5.5, strength=strength, **size)
    pipe = pipeline(StableDiffusionImg2ImgPipeline, f"{base}/sd15", HeunDiscreteScheduler(**CONFIG), SD)
    run("img2img-heun", f"{base}/sd15", pipe, CONFIG,
        {"task": "img2img", **size, **text, "steps": 6, "guidanceScale": 5.5, "strength": 0.5}, ["vaeNoise", "noise"],
        image=picture(48, 40, 6), **called, num_inference_steps=6, guidance_scale=5.5, strength=0.5)

    # A multistep sampler that begins amid its schedule; sizes and crops of their own for the negative prompt, where the start is a picture.
    pipe = pipeline(StableDiffusionImg2ImgPipeline, f"{base}/sd15", LMSDiscreteScheduler(**CONFIG), SD)
    run("img2img-lms", f"{base}/sd15", pipe, CONFIG,
        {"task": "img2img", **size, **text, "steps": 6, "guidanceScale": 5.5, "strength": 0.7}, ["vaeNoise", "noise"],
        image=picture(48, 40, 7), **called, num_inference_steps=6, guidance_scale=5.5, strength=0.7)
    unshifted = {**CONFIG, "steps_offset": 0, "timestep_spacing": "leading"}
    pipe = pipeline(StableDiffusionXLImg2ImgPipeline, f"{base}/sdxl", EulerDiscreteScheduler(**unshifted), XL)
    run("sdxl-img2img-crops", f"{base}/sdxl", pipe, unshifted,
        {"task": "img2img", **size, **text, "steps": 5, "guidanceScale": 5.5, "strength": 0.6, "cropsCoordsTopLeft": [4, 12],
         "negativeOriginalSize": [64, 32], "negativeCropsCoordsTopLeft": [20, 8]}, ["vaeNoise", "noise"],
        image=picture(48, 40, 8), **called, num_inference_steps=5, guidance_scale=5.5, strength=0.6, crops_coords_top_left=(4, 12),
        negative_original_size=(64, 32), negative_crops_coords_top_left=(20, 8))

    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, os.path.join(HERE, "tensors.safetensors"))
    with open(os.path.join(HERE, "cases.json"), "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


main()
