"""Trains the CLIP vision encoder of the pocket world with PyTorch, on one CPU core: `python train.py --pictures FILE.npz --minutes 20`.

FILE.npz has `pictures` [N, 128, 128, 3] of 8 bits and `captions` [N] of the world that the pocket model was trained on; the first 512 are
held out. Both towers are transformers' own (CLIPModel), the tokens those of the pocket model. Only the vision tower and its projection are
kept, as CLIPVisionModelWithProjection in fp16. Needs torch, transformers, pillow and numpy.
"""
import argparse, json, os, sys, time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.modules["torchvision"] = None
import numpy as np, torch, torch.nn.functional as F
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection

HERE = os.path.dirname(os.path.abspath(__file__))
SIDE, HELD_OUT, LENGTH, BATCH, RATE = 64, 512, 40, 192, 1.5e-3
MEAN, DEVIATION = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
VISION = dict(projection_dim=64, hidden_size=96, intermediate_size=384, num_hidden_layers=3, num_attention_heads=3, image_size=SIDE, patch_size=8, hidden_act="quick_gelu")
TEXT = dict(projection_dim=64, hidden_size=96, intermediate_size=384, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=LENGTH, hidden_act="quick_gelu")


def log(*words):
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def small(pictures):
    """As the processor of transformers makes them: bicubic to the encoder's side."""
    return np.stack([np.asarray(Image.fromarray(p).resize((SIDE, SIDE), Image.BICUBIC)) for p in pictures])


def pixels(pictures):
    return ((torch.from_numpy(pictures).float() / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).permute(0, 3, 1, 2).contiguous()


def shifted(pictures, rng):
    """Moved by up to 3 pixels: a crop is the same scene."""
    padded = np.pad(pictures, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")
    return np.stack([p[y : y + SIDE, x : x + SIDE] for p, (y, x) in zip(padded, rng.integers(0, 7, (len(padded), 2)))])


def retrieval(model, pictures, ids, captions):
    """Share of held-out pictures whose own caption (or an equal one) is first, and among the first five, of all held-out captions."""
    model.eval()
    with torch.no_grad():
        images = torch.cat([model(input_ids=ids[:1], pixel_values=pixels(pictures[i : i + 64])).image_embeds for i in range(0, len(pictures), 64)])
        texts = torch.cat([model(input_ids=ids[i : i + 64], pixel_values=pixels(pictures[:1])).text_embeds for i in range(0, len(ids), 64)])
    model.train()
    order = (images @ texts.T).argsort(1, descending=True)[:, :5].numpy()
    same = np.array([[captions[j] == captions[i] for j in row] for i, row in enumerate(order)])
    return float(same[:, 0].mean()), float(same.any(1).mean())


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--pictures", required=True)
    arguments.add_argument("--minutes", type=float, default=20)
    arguments.add_argument("--tokenizer", default=os.path.join(HERE, "..", "pocket", "tokenizer"))
    a = arguments.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    made = np.load(a.pictures)
    pictures, captions = small(made["pictures"]), [str(c) for c in made["captions"]]
    tokenizer = CLIPTokenizer.from_pretrained(a.tokenizer)
    ids = torch.tensor(tokenizer(captions, padding="max_length", truncation=True, max_length=LENGTH).input_ids)
    # Text behind the longest caption's end is padding, which the causal attention never looks at from the end token.
    ids = ids[:, : int((ids != tokenizer.eos_token_id).sum(1).max()) + 1]
    text = dict(TEXT, vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=64)).train()
    log("pictures", pictures.shape, "vision parameters", sum(p.numel() for p in model.vision_model.parameters()))
    optimiser = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.05)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    start, total, step = time.time(), a.minutes * 60, 0
    while (gone := (time.time() - start) / total) < 1:
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 100) * max(0.01, 1 - gone)
        pick = rng.integers(HELD_OUT, len(pictures), BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(input_ids=ids[pick], pixel_values=pixels(shifted(pictures[pick], rng)))
        logits = out.logits_per_image.float()
        loss = (F.cross_entropy(logits, torch.arange(BATCH)) + F.cross_entropy(logits.T, torch.arange(BATCH))) / 2
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        model.logit_scale.data.clamp_(0, 4.6052)
        step += 1
        with torch.no_grad():
            for name, value in model.state_dict().items():
                average[name] = value.clone() if not value.is_floating_point() else average[name].lerp_(value, 1 - min(0.995, (step + 1) / (step + 10)))
        if step % 100 == 0:
            first, five = retrieval(model, pictures[:HELD_OUT], ids[:HELD_OUT], captions[:HELD_OUT])
            log("step", step, f"loss {loss.item():.3f} held out: first {first:.3f}, first five {five:.3f}")
    model.load_state_dict(average)
    first, five = retrieval(model, pictures[:HELD_OUT], ids[:HELD_OUT], captions[:HELD_OUT])
    log("end", step, f"averaged weights, held out: first {first:.3f}, first five {five:.3f}")
    save(model)


def save(model):
    vision = CLIPVisionModelWithProjection(model.config.vision_config)
    missing, _ = vision.load_state_dict(model.state_dict(), strict=False)
    assert not [name for name in missing if not name.endswith("position_ids")], missing
    vision.half().save_pretrained(HERE)
    processor = dict(
        image_processor_type="CLIPImageProcessor", do_resize=True, size={"shortest_edge": SIDE}, resample=3, do_center_crop=True,
        crop_size={"height": SIDE, "width": SIDE}, do_rescale=True, rescale_factor=1 / 255, do_normalize=True, image_mean=MEAN, image_std=DEVIATION, do_convert_rgb=True,
    )
    with open(os.path.join(HERE, "preprocessor_config.json"), "w") as file:
        json.dump(processor, file, indent=2)
        file.write("\n")


main()
