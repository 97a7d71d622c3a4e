"""Reference states of prompts in A1111's language and of prompts longer than one chunk, over the text encoders of ../base.

    python make.py      (torch, transformers, safetensors; on the CPU)

writes tensors.safetensors and cases.json beside itself. Weights, BREAK and chunks are read here by a scanner of their own (a recursive one, by
the published rules), and the encoders are transformers'.
"""
import json
import os
import re

import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

torch.set_num_threads(1)
HERE = os.path.dirname(os.path.abspath(__file__))
CHUNK = 75
REACH = 20


def close_of(text, i):
    """Index of the bracket that closes text[i], or None; escaped brackets do not count."""
    depth, want = 0, {"(": ")", "[": "]"}[text[i]]
    k = i
    while k < len(text):
        if text[k] == "\\":
            k += 1
        elif text[k] == text[i]:
            depth += 1
        elif text[k] == want:
            depth -= 1
            if depth == 0:
                return k
        k += 1
    return None


def weighted(text, factor=1.0):
    """Pieces (text, weight) of a text whose brackets are balanced; BREAK is None."""
    pieces, plain, i = [], "", 0

    def flush():
        nonlocal plain
        for n, part in enumerate(re.split(r"\s*\bBREAK\b\s*", plain)):
            if n:
                pieces.append(None)
            pieces.append((part, factor))
        plain = ""

    while i < len(text):
        c = text[i]
        if c == "\\" and i + 1 < len(text) and text[i + 1] in "()[]\\":
            # An escaped bracket is a piece of its own, so that BREAK is not sought across it.
            flush()
            pieces.append((text[i + 1], factor))
            i += 2
        elif c in "([":
            end = close_of(text, i)
            inner = text[i + 1:end]
            given = re.search(r":\s*([+-]?[.\d]+)\s*$", inner) if c == "(" else None
            flush()
            scale = float(given.group(1)) if given else (1.1 if c == "(" else 1 / 1.1)
            pieces.extend(weighted(inner[:given.start()] if given else inner, factor * scale))
            i = end + 1
        else:
            plain += c
            i += 1
    flush()
    return pieces


def merge(pieces):
    """Neighbours of equal weight are tokenised as one text."""
    out = []
    for piece in pieces:
        if piece is not None and out and out[-1] is not None and abs(out[-1][1] - piece[1]) < 1e-12:
            out[-1] = (out[-1][0] + piece[0], piece[1])
        else:
            out.append(piece)
    return out


def chunks_of(pieces, tokenizer, by_comma):
    comma = tokenizer(",", add_special_tokens=False)["input_ids"][0]
    done, ids, weights, last = [], [], [], None

    def close():
        nonlocal ids, weights, last
        done.append((ids, weights))
        ids, weights, last = [], [], None

    for piece in pieces:
        if piece is None:
            close()
            continue
        for token in tokenizer(piece[0], add_special_tokens=False)["input_ids"]:
            if by_comma and token == comma:
                last = len(ids)
            elif by_comma and len(ids) == CHUNK and last is not None and CHUNK - last <= REACH:
                kept = last + 1
                moved = ids[kept:], weights[kept:]
                ids, weights = ids[:kept], weights[:kept]
                close()
                ids, weights = list(moved[0]), list(moved[1])
            if len(ids) == CHUNK:
                close()
            ids.append(token)
            weights.append(piece[1])
    if ids or not done:
        close()
    return done


def encode(model, tokenizer, chunks, normed, skip, projected):
    states, pooled = [], None
    for ids, weights in chunks:
        row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        row += [tokenizer.pad_token_id] * (CHUNK + 2 - len(row))
        scale = torch.tensor([1.0, *weights] + [1.0] * (CHUNK + 1 - len(weights)))
        out = model(torch.tensor([row]), output_hidden_states=True)
        z = out.hidden_states[-1 - skip]
        if normed:
            final = getattr(model, "text_model", model).final_layer_norm
            z = final(z)
        if any(weight != 1 for weight in weights):
            mean = z.mean()
            z = z * scale[None, :, None]
            z = z * (mean / z.mean())
        states.append(z)
        if pooled is None and projected:
            pooled = out.text_embeds
    return torch.cat(states, dim=1), pooled


def load(folder, name):
    kind = CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel
    path = os.path.join(HERE, "../base/models", folder)
    return (kind.from_pretrained(path, subfolder=name, torch_dtype=torch.float32).eval(),
            CLIPTokenizer.from_pretrained(path, subfolder=name.replace("text_encoder", "tokenizer")))


LONG = ", ".join(f"a red fox number {n} in the snow" for n in range(1, 16))
PROMPTS = [
    ("plain-brackets", "a (red:1.5) fox [x]", "plain", 0),
    ("plain-long", LONG, "plain", 0),
    ("plain-long-skip", LONG, "plain", 1),
    ("weights", r"a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))). \(literal\) [grey]", "a1111", 0),
    ("weights-skip", "a (red:1.4) fox in the [snow]", "a1111", 1),
    ("break", "a red fox BREAK in the (snow BREAK at night:1.2)", "a1111", 0),
    ("commas", LONG, "a1111", 0),
    ("commas-weights", f"(best fox:1.2), {LONG}, [[night]]", "a1111", 0),
    ("negative-weight", "a fox (snow:-0.5)", "a1111", 0),
]


def main():
    tensors, cases = {}, []
    for folder, encoders in (("sd15", ["text_encoder"]), ("sd21", ["text_encoder"]), ("sdxl", ["text_encoder", "text_encoder_2"])):
        loaded = [load(folder, name) for name in encoders]
        for name, prompt, syntax, skip in PROMPTS:
            name = f"{folder}-{name}"
            outputs = []
            # The scanner above wants balanced brackets: a stray one at the end is closed as A1111 closes it.
            text = prompt + ")" * (len(re.findall(r"(?<!\\)\(", prompt)) - len(re.findall(r"(?<!\\)\)", prompt)))
            pieces = merge(weighted(text)) if syntax == "a1111" else [(prompt, 1.0)]
            with torch.no_grad():
                for model, tokenizer in loaded:
                    normed = folder != "sdxl"
                    chunks = chunks_of(pieces, tokenizer, syntax == "a1111")
                    projected = hasattr(model, "text_projection")
                    outputs.append(encode(model, tokenizer, chunks, normed, skip if normed else skip + 1, projected))
            expected = {"states": torch.cat([states for states, _ in outputs], dim=2)}
            if folder == "sdxl":
                expected["pooled"] = outputs[-1][1]
            for key, value in expected.items():
                tensors[f"{name}/{key}"] = value.contiguous().clone()
            cases.append({"name": f"prompt-{name}", "kind": "prompt", "model": f"../base/models/{folder}",
                          "params": {"prompt": prompt, "syntax": syntax, "clipSkip": skip}, "tensors": "tensors.safetensors",
                          "expected": {key: f"{name}/{key}" for key in expected},
                          "tolerances": {key: {"atol": float(f"{3e-4 * value.std().item():.3g}"), "rtol": 1e-4} for key, value in expected.items()},
                          "reference": "transformers' encoders; A1111's published rules for weights, BREAK, commas and the restored mean"})
    save_file(tensors, os.path.join(HERE, "tensors.safetensors"))
    with open(os.path.join(HERE, "cases.json"), "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


main()
