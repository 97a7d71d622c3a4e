"""Reference cases of what stands around a run and of runs that change on their way: crops, fills and borders of inpainting, a second pass over
enlarged pixels, noise between two seeds, guidance and adapters for a part of the steps, prompts that change, an inpainting model of SDXL and a
latent consistency model as whole runs, two layouts of textual inversions.

    python make.py      (torch, diffusers, transformers, peft, Pillow, safetensors; on the CPU)

writes models/, adapters/, tensors.safetensors and cases.json beside itself; the other models are those of ../base and ../adapters. Runs are
fp32 runs of diffusers' pipelines, whose random draws are recorded in their order. Where diffusers has no such thing, Pillow's and torch's own
operations are put together after A1111's published behaviour.
"""
import json
import os
import shutil
import sys

import diffusers
import numpy as np
import PIL
import torch
from diffusers import (AutoencoderKL, ControlNetModel, DDIMScheduler, EulerDiscreteScheduler, LCMScheduler, StableDiffusionAdapterPipeline,
                       StableDiffusionControlNetImg2ImgPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline,
                       StableDiffusionPipeline, StableDiffusionXLInpaintPipeline, T2IAdapter, UNet2DConditionModel)
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import torch_utils
from PIL import Image, ImageFilter, ImageOps
from safetensors.torch import save_file
from transformers import (CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection)

torch.set_num_threads(1)
HERE = os.path.dirname(os.path.abspath(__file__))
BASE, ADAPTERS = "../base/models", "../adapters/models"
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "steps_offset": 1}
DDIM = {**CONFIG, "clip_sample": False, "set_alpha_to_one": False}
SD = ("unet", "vae", "text_encoder", "tokenizer")
XL = (*SD, "text_encoder_2", "tokenizer_2")
WIDTH, HEIGHT = 48, 40
PROMPT, NEGATIVE = "a red fox in the snow, detailed", "blurry, low quality"
tensors, cases, draws = {}, [], []


def record(shape, generator=None, device=None, dtype=None, layout=None):
    draws.append(torch.randn(tuple(shape), generator=generator, dtype=torch.float32))
    return draws[-1]


def patch():
    original = torch_utils.randn_tensor
    for module in list(sys.modules.values()):
        if getattr(module, "randn_tensor", None) is original:
            module.randn_tensor = record


def put(name, value):
    """The name under which the tensor is stored; what is there already is not stored again."""
    value = value.detach().contiguous().float().clone()
    same = next((other for other, stored in tensors.items() if stored.shape == value.shape and torch.equal(stored, value)), name)
    tensors[same] = value
    return same


def add(name, kind, params, inputs, expected, tolerances, reference, **more):
    cases.append({"name": name, "kind": kind, **more, "params": params, "tensors": "tensors.safetensors",
                  "inputs": {key: put(f"{name}/in.{key}", value) for key, value in inputs.items()},
                  "expected": {key: put(f"{name}/out.{key}", value) for key, value in expected.items()},
                  **({"tolerances": tolerances} if tolerances else {}), "reference": reference})


# ---- noise between two seeds -----------------------------------------------------------------------------------------------------

def variation():
    """As A1111's variation seed: `dim=1` of a noise [C, h, w] without a batch is its height."""
    for strength in (0.25, 0.8, 1.0):
        a, b = (torch.randn((1, 4, 6, 5), generator=torch.Generator().manual_seed(seed)) for seed in (11, 12))
        cosine = torch.nn.functional.cosine_similarity(a, b, dim=2).double()
        angle = torch.acos(cosine)[:, :, None]
        between = (torch.sin((1 - strength) * angle) * a + torch.sin(strength * angle) * b) / torch.sin(angle)
        add(f"variation-{strength}", "noise", {"generator": "torch-cpu", "seed": 11, "shapes": [[1, 4, 6, 5]], "variation": {"seed": 12, "strength": strength}},
            {}, {"draw0": between}, {"draw0": {"atol": 2e-6, "rtol": 1e-5}}, "torch: spherical interpolation along the height, as A1111's variation seed")


# ---- crops, fills, borders -------------------------------------------------------------------------------------------------------

def picture(width, height, seed):
    """Smooth colours with an edge, in bytes."""
    small = torch.rand((1, 3, 5, 6), generator=torch.Generator().manual_seed(seed))
    values = torch.nn.functional.interpolate(small, size=(height, width), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0).numpy().copy()
    values[: height // 3, width // 2:] = 1 - values[: height // 3, width // 2:]
    return Image.fromarray(np.round(values * 255).astype(np.uint8))


def rectangle(width, height, box):
    values = np.zeros((height, width), dtype=np.uint8)
    left, top, right, bottom = box
    values[top:bottom, left:right] = 255
    return Image.fromarray(values)


def unit(image):
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)


def filled(image, mask):
    """A1111's "fill": ever sharper pictures of what is around the mask, laid over one another."""
    around = Image.new("RGBa", image.size)
    around.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    result = Image.new("RGBA", image.size)
    for deviation, repeats in ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1)):
        layer = around.filter(ImageFilter.GaussianBlur(deviation)).convert("RGBA")
        for _ in range(repeats):
            result = Image.alpha_composite(result, layer)
    return result.convert("RGB")


def source_case(name, image, mask, result, params, fill=False, canvas=None):
    """`canvas`: the picture within its borders and the whole mask, where these are not given but made."""
    size = {"width": result.width, "height": result.height}
    pixels_of, mask_of = VaeImageProcessor(vae_scale_factor=8), VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_convert_grayscale=True)
    whole, area = canvas if canvas else (image, mask)
    if whole.size != result.size:
        # diffusers stretches what has other proportions; here it is cut, as with A1111's "crop and resize".
        whole, area = (pixels_of.resize(x, **size, resize_mode="crop") for x in (whole, area))
        area = area.convert("L").point(lambda value: 255 if value >= 128 else 0)
    soft = area.filter(ImageFilter.GaussianBlur(params.get("blur", 8 if mask is None else 0)))
    crop = pixels_of.get_crop_region(soft, **size, pad=params["paddingCrop"]) if "paddingCrop" in params else None
    part, part_mask = whole, soft
    if crop:
        part, part_mask = (pixels_of.resize(x.crop(crop), **{"width": size["width"], "height": size["height"]}, resize_mode="fill") for x in (whole, soft))
        part_mask = part_mask.convert("L")
    pixels = pixels_of.preprocess(filled(part, part_mask) if fill else part, **size)
    finished = pixels_of.apply_overlay(soft, whole, result, crop)
    add(name, "source-picture", {**size, **params}, {"image": unit(image), **({"mask": unit(mask)} if mask else {}), "result": unit(result)},
        {"pixels": pixels, "mask": mask_of.preprocess(soft if not crop else part_mask, **size)[0, 0], "finished": unit(finished)},
        # Resampling and blurring are exact; Pillow rounds where it multiplies by alpha, in a fill again and again.
        {"pixels": {"atol": 2.5 / 127.5 if fill else 1e-5, "rtol": 0}, "mask": {"atol": 1e-5, "rtol": 0}, "finished": {"atol": 2.1 / 255, "rtol": 0}},
        f"diffusers {diffusers.__version__} VaeImageProcessor, Pillow {PIL.__version__}" + ("; fill by A1111's published steps" if fill else ""))
    cases[-1]["expectedJson"] = {"region": list(crop) if crop else None}


def sources():
    width, height = 32, 24
    image, result = picture(width, height, 1), picture(width, height, 2)
    boxes = {"inner": (11, 8, 17, 15), "wide": (4, 12, 27, 15), "corner": (26, 0, 32, 11), "edge": (0, 18, 4, 24)}
    for name, blur, padding in (("inner", 0, 4), ("inner", 2, 3), ("wide", 1, 0), ("wide", 3.5, 5), ("corner", 0, 2), ("edge", 1.5, 1), ("inner", 4, 20)):
        source_case(f"crop-{name}-{blur}-{padding}", image, rectangle(width, height, boxes[name]), result, {"blur": blur, "paddingCrop": padding})
    source_case("blur", image, rectangle(width, height, boxes["wide"]), result, {"blur": 2.5})
    source_case("fill", image, rectangle(width, height, boxes["inner"]), result, {"blur": 2, "fill": "blur"}, fill=True)
    source_case("fill-noise", image, rectangle(width, height, boxes["corner"]), result, {"fill": "noise"}, fill=True)
    source_case("fill-crop", image, rectangle(width, height, boxes["wide"]), result, {"blur": 1, "paddingCrop": 2, "fill": "blur"}, fill=True)
    source_case("enlarged", picture(21, 30, 4), rectangle(21, 30, (5, 8, 14, 20)), result, {})
    source_case("reduced", picture(75, 43, 5), rectangle(75, 43, (20, 9, 51, 30)), result, {"blur": 1, "paddingCrop": 2})
    for name, blur, borders in (("outpaint", None, (0, 8, 8, 0)), ("outpaint-blur", 1.5, (8, 8, 0, 8))):
        left, right, top, bottom = borders
        width, height = 32 + left + right, 24 + top + bottom
        canvas = Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge"))
        overlap = int(2 * (8 if blur is None else blur))
        area = np.full((height, width), 255, dtype=np.uint8)
        # A1111's "poor man's outpainting", without the pixel more that Pillow's rectangles have at their far ends.
        area[top + (overlap if top else 0):height - bottom - (overlap if bottom else 0), left + (overlap if left else 0):width - right - (overlap if right else 0)] = 0
        drawn = None
        if blur is not None:
            drawn = rectangle(width, height, (12, 6, 16, 9))
            area = np.maximum(area, np.asarray(drawn))
        params = {"outpaint": {"left": left, "right": right, "top": top, "bottom": bottom}, **({} if blur is None else {"blur": blur})}
        source_case(name, image, drawn, picture(width, height, 3), params, canvas=(canvas, Image.fromarray(area)))


# ---- whole runs ------------------------------------------------------------------------------------------------------------------

def components(folder, *names):
    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel,
               "text_encoder_2": CLIPTextModelWithProjection, "tokenizer": CLIPTokenizer, "tokenizer_2": CLIPTokenizer}
    path = os.path.join(HERE, folder)
    return {name: classes[name].from_pretrained(path, subfolder=name, **({} if name.startswith("tokenizer") else {"torch_dtype": torch.float32}))
            for name in names}


def pipeline(kind, folder, scheduler, names=SD, **more):
    if names == SD:
        more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False, **more}
    pipe = kind(**components(folder, *names), scheduler=scheduler, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(name, model, pipe, config, params, draw_names, inputs={}, adapters=(), as_picture=False, on_step=None, texts=True, **call):
    """One run; its latents are those after the last step."""
    draws.clear()
    last = {}

    def callback(_, step, timestep, values):
        last["latents"] = values["latents"]
        return (on_step(pipe, step, values) if on_step else None) or {}

    named = {"prompt": PROMPT, "negative_prompt": NEGATIVE} if texts else {}
    steps = params["steps"]
    watched = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents"] + (["prompt_embeds"] if on_step else [])}
    if isinstance(pipe, StableDiffusionAdapterPipeline):
        watched = {"callback": lambda step, timestep, latents: last.update(latents=latents)}
    with torch.no_grad():
        made = pipe(**named, **call, num_inference_steps=steps, generator=torch.Generator().manual_seed(len(cases) + 1),
                    output_type="pil" if as_picture else "latent", **watched).images
    latents = last["latents"]
    expected = {"latents": latents}
    tolerances = {"latents": {"atol": float(f"{1e-3 * latents.std().item():.3g}"), "rtol": 1e-3}}
    if as_picture:
        # Both are rounded to bytes, twice where a crop is pasted.
        expected["image"], tolerances["image"] = unit(made[0]), {"atol": 2.1 / 255, "rtol": 0}
    given = {**inputs, **dict(zip(draw_names, draws))}
    rest = draws[len(draw_names):]
    if rest:
        given["stepNoises"] = torch.stack(rest)
    own = {"prompt": PROMPT, "negativePrompt": NEGATIVE} if texts else {}
    add(name, "pipeline", {"width": WIDTH, "height": HEIGHT, **own, **params, "scheduler": type(pipe.scheduler).__name__, "schedulerConfig": config},
        given, expected, tolerances, f"diffusers {diffusers.__version__} {type(pipe).__name__}, draws recorded in order", model=model,
        **({"adapters": list(adapters)} if adapters else {}))


def own_model(name, source, class_name, texts, **unet):
    """A folder with the VAE and the tokenizers of another, and new small text encoders and UNet, in half precision."""
    target, origin = os.path.join(HERE, "models", name), os.path.join(HERE, source)
    kept = ["vae", "scheduler", *(part.replace("text_encoder", "tokenizer") for part in texts)]
    for part in kept:
        shutil.copytree(os.path.join(origin, part), os.path.join(target, part))
    torch.manual_seed(len(name))
    width = 0
    for part, (kind, size) in texts.items():
        config = CLIPTextConfig.from_pretrained(os.path.join(origin, part))
        config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads = size, 2 * size, 2, 2
        config.projection_dim, width = 16, width + size
        kind(config).half().save_pretrained(os.path.join(target, part))
    model = UNet2DConditionModel(sample_size=8, layers_per_block=1, norm_num_groups=4, block_out_channels=(8, 16), attention_head_dim=2,
                                 down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                                 cross_attention_dim=width, **unet)
    with torch.no_grad():
        for parameter in model.parameters():
            # Default weights are too even: attention would do next to nothing.
            parameter.mul_(2)
    model.half().save_pretrained(os.path.join(target, "unet"))
    with open(os.path.join(origin, "model_index.json")) as file:
        index = json.load(file)
    with open(os.path.join(target, "model_index.json"), "w") as file:
        json.dump({"_class_name": class_name, **{key: value for key, value in index.items() if key in (*kept, *texts, "unet")}}, file, indent=1)


def inpainting():
    """The crop around a mask as a whole run, with 4 and with 9 channels; an inpainting model of SDXL."""
    image, mask = picture(WIDTH, HEIGHT, 4), rectangle(WIDTH, HEIGHT, (14, 10, 26, 20))
    for model in ("sd15", "inpaint"):
        for strength in (0.6, 1.0):
            pipe = pipeline(StableDiffusionInpaintPipeline, f"{BASE}/{model}", EulerDiscreteScheduler(**CONFIG))
            soft = pipe.mask_processor.blur(mask, 2)
            drawn = ["noise", "maskedVaeNoise"] if model == "inpaint" and strength == 1 else ["vaeNoise", "noise", "maskedVaeNoise"]
            run(f"padding-crop-{model}-{strength}", f"{BASE}/{model}", pipe, CONFIG,
                {"task": "inpaint", "steps": 5, "guidanceScale": 5.5, "strength": strength, "source": {"blur": 2, "paddingCrop": 6}},
                drawn, {"image": unit(image), "mask": unit(mask)}, as_picture=True, image=image, mask_image=soft, padding_mask_crop=6,
                guidance_scale=5.5, strength=strength, width=WIDTH, height=HEIGHT)
    own_model("xl-inpaint", f"{BASE}/sdxl", "StableDiffusionXLInpaintPipeline", {"text_encoder": (CLIPTextModel, 12), "text_encoder_2": (CLIPTextModelWithProjection, 16)},
              in_channels=9, addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + 16, use_linear_projection=True)
    pixels, area = unit(image).permute(2, 0, 1)[None], unit(mask)[None, None]
    for strength in (0.6, 1.0):
        pipe = pipeline(StableDiffusionXLInpaintPipeline, "models/xl-inpaint", EulerDiscreteScheduler(**CONFIG), XL)
        run(f"xl-inpaint-9-{strength}", "models/xl-inpaint", pipe, CONFIG, {"task": "inpaint", "steps": 4, "guidanceScale": 5.5, "strength": strength},
            ["noise", "maskedVaeNoise"] if strength == 1 else ["vaeNoise", "noise", "maskedVaeNoise"], {"image": unit(image), "mask": unit(mask)},
            image=pixels, mask_image=area, guidance_scale=5.5, strength=strength, width=WIDTH, height=HEIGHT)


def consistency():
    own_model("lcm", f"{BASE}/sd15", "StableDiffusionPipeline", {"text_encoder": (CLIPTextModel, 12)}, time_cond_proj_dim=6)
    for scale in (1.5, 8.5):
        pipe = pipeline(StableDiffusionPipeline, "models/lcm", LCMScheduler(**DDIM))
        run(f"lcm-{scale}", "models/lcm", pipe, DDIM, {"task": "txt2img", "steps": 4, "guidanceScale": scale}, ["latents"],
            guidance_scale=scale, width=WIDTH, height=HEIGHT)
    pipe = pipeline(StableDiffusionImg2ImgPipeline, "models/lcm", LCMScheduler(**DDIM))
    image = picture(WIDTH, HEIGHT, 5)
    run("lcm-img2img", "models/lcm", pipe, DDIM, {"task": "img2img", "steps": 4, "guidanceScale": 8.5, "strength": 0.5}, ["vaeNoise", "noise"],
        {"image": unit(image)}, image=image, guidance_scale=8.5, strength=0.5)


def second_pass():
    small = picture(24, 16, 6)
    pipe = pipeline(StableDiffusionImg2ImgPipeline, f"{BASE}/sd15", EulerDiscreteScheduler(**CONFIG))
    run("upscale-pixel", f"{BASE}/sd15", pipe, CONFIG, {"task": "img2img", "steps": 5, "guidanceScale": 5.5, "strength": 0.6, "enlargedFrom": [16, 24]},
        ["vaeNoise", "noise"], {"image": unit(small)}, image=small.resize((WIDTH, HEIGHT), Image.LANCZOS), guidance_scale=5.5, strength=0.6)


def guidance():
    """diffusers' documented way of guidance that changes: the callback sets the scale and the halves of the prompt."""
    steps = 6
    for start, end in ((0, 0.5), (0.3, 1), (0.2, 0.7)):
        pipe = pipeline(StableDiffusionPipeline, f"{BASE}/sd15", EulerDiscreteScheduler(**CONFIG))
        both = torch.cat(pipe.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)[::-1])
        inside = [step / steps >= start and (step + 1) / steps <= end for step in range(steps)]

        def on_step(pipe, step, values):
            if step + 1 < steps:
                pipe._guidance_scale = 5.5 if inside[step + 1] else 1.0
                return {"prompt_embeds": both if inside[step + 1] else both[1:]}

        run(f"guidance-{start}-{end}", f"{BASE}/sd15", pipe, CONFIG,
            {"task": "txt2img", "steps": steps, "guidanceScale": 5.5, "guidanceStart": start, "guidanceEnd": end}, ["latents"],
            guidance_scale=5.5 if inside[0] else 1.0, width=WIDTH, height=HEIGHT, on_step=on_step)


def changing_prompts():
    """The texts of each step written out, as A1111's documentation of prompt editing and alternating words has them."""
    rows = {
        "edited": ("a [red:blue:0.5] fox [in the snow:3]", ["a red fox ", "a red fox ", "a red fox ", "a blue fox in the snow", "a blue fox in the snow", "a blue fox in the snow"]),
        "removed": ("a fox [at night::2] here", ["a fox at night here"] * 2 + ["a fox  here"] * 4),
        "alternating": ("a [cat|red fox|house] by the sea", [f"a {word} by the sea" for word in ("cat", "red fox", "house") * 2]),
        "nested": ("[a [cat|dog]:a house:0.7] by the sea", [f"{word} by the sea" for word in ("a cat", "a dog", "a cat", "a dog", "a house", "a house")]),
    }
    for name, (prompt, texts) in rows.items():
        pipe = pipeline(StableDiffusionPipeline, f"{BASE}/sd15", EulerDiscreteScheduler(**CONFIG))
        states = [torch.cat(pipe.encode_prompt(text, "cpu", 1, True, NEGATIVE)[::-1]) for text in texts]
        assert len(texts) == 6

        def on_step(pipe, step, values):
            if step + 1 < len(states):
                return {"prompt_embeds": states[step + 1]}

        run(f"prompt-{name}", f"{BASE}/sd15", pipe, CONFIG,
            {"task": "txt2img", "steps": 6, "guidanceScale": 5.5, "prompt": prompt, "negativePrompt": NEGATIVE, "syntax": "a1111"}, ["latents"],
            guidance_scale=5.5, width=WIDTH, height=HEIGHT, on_step=on_step, texts=False, prompt=texts[0], negative_prompt=NEGATIVE)


def adapters():
    """Adapters for a part of the steps, from a picture, and with guidance."""
    lora = "../adapters/adapters/lora"
    base = f"{ADAPTERS}/sd15"
    common = {"steps": 4, "guidanceScale": 4.5}
    size = {"width": WIDTH, "height": HEIGHT}
    image, control = picture(WIDTH, HEIGHT, 7), picture(WIDTH, HEIGHT, 8)
    chart = unit(control).permute(2, 0, 1)[None]

    net = ControlNetModel.from_pretrained(os.path.join(HERE, "../adapters/models/controlnet-folder"), torch_dtype=torch.float32)
    for start, end in ((0, 1), (0.3, 0.8)):
        pipe = pipeline(StableDiffusionControlNetImg2ImgPipeline, base, DDIMScheduler(**DDIM), controlnet=net)
        run(f"controlnet-img2img-{start}-{end}", base, pipe, DDIM, {"task": "img2img", **common, "steps": 6, "strength": 0.7}, ["vaeNoise", "noise"],
            {"image": unit(image), "controlnet_cond": chart},
            [{"file": "../adapters/models/controlnet-folder", "kind": "controlnet", "weight": 0.7, "start": start, "end": end}], image=image, control_image=control,
            strength=0.7, guidance_scale=4.5, controlnet_conditioning_scale=0.7, control_guidance_start=start, control_guidance_end=end)

    adapter = T2IAdapter.from_pretrained(os.path.join(HERE, "../adapters/models/t2i-adapter"), torch_dtype=torch.float32)
    pipe = pipeline(StableDiffusionAdapterPipeline, base, DDIMScheduler(**DDIM), adapter=adapter)
    run("t2i-adapter", base, pipe, DDIM, {"task": "txt2img", **common}, ["latents"], {"t2i_cond": chart},
        [{"file": "../adapters/models/t2i-adapter", "kind": "t2i-adapter", "weight": 0.8}], image=control, adapter_conditioning_scale=0.8, guidance_scale=4.5, **size)

    for start, end in ((0, 0.5), (0.25, 0.75)):
        pipe = pipeline(StableDiffusionPipeline, base, DDIMScheduler(**DDIM))
        pipe.load_lora_weights(os.path.join(HERE, lora), weight_name="combined.safetensors", adapter_name="lora")
        pipe.set_adapters("lora", 0.8)
        inside = [step / 4 >= start and (step + 1) / 4 <= end for step in range(4)]
        switch = lambda pipe, step: pipe.unet.enable_lora() if inside[step] else pipe.unet.disable_lora()
        switch(pipe, 0)
        run(f"lora-{start}-{end}", base, pipe, DDIM, {"task": "txt2img", **common}, ["latents"], {},
            [{"file": f"{lora}/combined.safetensors", "kind": "lora", "weight": 0.8, "start": start, "end": end}], guidance_scale=4.5, **size,
            on_step=lambda pipe, step, values: switch(pipe, step + 1) if step < 3 else None)

    encoder = CLIPVisionModelWithProjection.from_pretrained(os.path.join(HERE, "../adapters/models/ip-adapter/image_encoder"), torch_dtype=torch.float32)
    side = encoder.config.image_size
    pixels = torch.randn((1, 3, side, side), generator=torch.Generator().manual_seed(9))
    for kind in ("base", "plus"):
        with torch.no_grad():
            if kind == "base":
                shown = encoder(pixels).image_embeds
                nothing = torch.zeros_like(shown)
            else:
                shown, nothing = (encoder(x, output_hidden_states=True).hidden_states[-2] for x in (pixels, torch.zeros_like(pixels)))
        for task, start_kind, more in (("txt2img", StableDiffusionPipeline, size), ("img2img", StableDiffusionImg2ImgPipeline, {"image": image, "strength": 0.6})):
            pipe = pipeline(start_kind, base, DDIMScheduler(**DDIM))
            pipe.load_ip_adapter(os.path.join(HERE, ADAPTERS), subfolder="ip-adapter", weight_name=f"ip-adapter-{kind}.safetensors", image_encoder_folder=None)
            pipe.set_ip_adapter_scale(0.6)
            run(f"ip-adapter-{kind}-{task}", base, pipe, DDIM,
                {"task": task, **common, **({"strength": 0.6} if task == "img2img" else {}), "imageEncoder": "../adapters/models/ip-adapter/image_encoder"},
                ["latents"] if task == "txt2img" else ["vaeNoise", "noise"],
                {"pixel_values": pixels, **({"image": unit(image)} if task == "img2img" else {})},
                [{"file": f"../adapters/models/ip-adapter/ip-adapter-{kind}.safetensors", "kind": "ip-adapter", "weight": 0.6}],
                guidance_scale=4.5, ip_adapter_image_embeds=[torch.cat([nothing[:, None], shown[:, None]])], **more)


# ---- textual inversions ----------------------------------------------------------------------------------------------------------

def inversions():
    """Rows put behind the encoders' tables, and their words into the tokenizers; keys as the trainers' sources name them."""
    token = "<cat-toy>"
    prompt = f"a photo of a {token} on the table by {token}"
    for name, model, keys in (("onetrainer", "sd15", ["emp_params"]), ("replicate", "sdxl", ["text_encoders_0", "text_encoders_1"])):
        folder = os.path.join(HERE, ADAPTERS, model)
        rows, outputs, ids, pooled = {}, [], [], None
        for i, key in enumerate(keys):
            part, tokens = ("text_encoder", "tokenizer") if i == 0 else ("text_encoder_2", "tokenizer_2")
            encoder = (CLIPTextModel, CLIPTextModelWithProjection)[i].from_pretrained(folder, subfolder=part, torch_dtype=torch.float32).eval()
            tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder=tokens)
            table = encoder.get_input_embeddings().weight.detach()
            own = torch.randn((3, table.shape[1]), generator=torch.Generator().manual_seed(20 + i)) * table.std()
            rows[key] = own
            words = [f"{token}_{n}" for n in range(3)]
            vocabulary = table.shape[0]
            tokenizer.add_tokens(words)
            encoder.resize_token_embeddings(vocabulary + 3, mean_resizing=False)
            with torch.no_grad():
                encoder.get_input_embeddings().weight[vocabulary:] = own
                given = tokenizer(prompt.replace(token, " ".join(words)), padding="max_length", max_length=77, return_tensors="pt").input_ids
                states = encoder(given, output_hidden_states=True)
            ids.append(given)
            outputs.append(states.last_hidden_state if len(keys) == 1 else states.hidden_states[-2])
            pooled = getattr(states, "text_embeds", None)
        stored = dict(rows)
        if name == "onetrainer":
            # Its rows for the encoder's result: nothing reads them here, nor in what else reads such files.
            stored["emp_params_out"] = torch.zeros(3, rows["emp_params"].shape[1])
        save_file(stored, os.path.join(HERE, f"adapters/{name}.safetensors"))
        hidden = torch.cat(outputs, dim=2)
        expected = {"text_hidden": hidden, **({"pooled": pooled} if len(keys) > 1 else {})}
        add(f"inversion-{name}", "textual-inversion", {"prompt": prompt, "token": token, "vocab": vocabulary}, {}, expected,
            {key: {"atol": float(f"{3e-4 * value.std().item():.3g}"), "rtol": 3e-4} for key, value in expected.items()},
            "transformers' encoders with the rows behind their tables", model=f"{ADAPTERS}/{model}",
            adapters=[{"file": f"adapters/{name}.safetensors", "kind": "textual-inversion", "weight": 1, "token": token}])
        cases[-1]["expectedJson"] = {"ids": ids[0][0].tolist(), **({"ids2": ids[1][0].tolist()} if len(ids) > 1 else {})}


def main():
    for name in ("models", "adapters"):
        shutil.rmtree(os.path.join(HERE, name), ignore_errors=True)
        os.makedirs(os.path.join(HERE, name))
    patch()
    for make in (variation, sources, inpainting, consistency, second_pass, guidance, changing_prompts, adapters, inversions):
        make()
    save_file(tensors, os.path.join(HERE, "tensors.safetensors"))
    with open(os.path.join(HERE, "cases.json"), "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


main()
