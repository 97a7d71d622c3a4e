"""AdamW with bitsandbytes' 8-bit moments: its dynamic maps and its block-wise quantisation, around torch's formula of AdamW.

    python make.py      (torch, bitsandbytes; on the CPU)

writes moments-8-bit.json beside itself. Two tensors of 700 and 300 elements, each quantised by itself in blocks of 256, five steps; start values
and gradients are formula(i, step) with i counted over both. (bitsandbytes keeps tensors below 4096 elements in 32 bits: left out here.)
"""
import json
import os

import bitsandbytes.functional as bnb
import torch

torch.set_num_threads(1)
RATE, BETAS, DECAY, EPSILON, STEPS, SIZES = 1e-2, (0.9, 0.99), 0.1, 1e-8, 5, (700, 300)
maps = {"first": bnb.create_dynamic_map(True), "second": bnb.create_dynamic_map(False)}


def formula(step):
    i = torch.arange(sum(SIZES))
    return (((i * 7919 + step * 1013) % 4001 - 2000) / 65536).float()


parameters = [part.clone() for part in formula(50).split(SIZES)]
moments = [{name: torch.zeros(size) for name in maps} for size in SIZES]
codes = {name: [None] * len(SIZES) for name in maps}
for step in range(1, STEPS + 1):
    for tensor, gradient in enumerate(formula(step).split(SIZES)):
        state, value = moments[tensor], parameters[tensor]
        first = BETAS[0] * state["first"] + (1 - BETAS[0]) * gradient
        second = BETAS[1] * state["second"] + (1 - BETAS[1]) * gradient * gradient
        value.mul_(1 - RATE * DECAY)
        value.sub_(RATE / (1 - BETAS[0] ** step) * first / ((second / (1 - BETAS[1] ** step)).sqrt() + EPSILON))
        for name, moment in (("first", first), ("second", second)):
            quantised, how = bnb.quantize_blockwise(moment, code=maps[name], blocksize=256)
            codes[name][tensor] = quantised
            state[name] = bnb.dequantize_blockwise(quantised, how)
result = {"maps": {"signed": maps["first"].tolist(), "unsigned": maps["second"].tolist()},
          "codes": {name: torch.cat(parts).flatten().tolist() for name, parts in codes.items()},
          "values": [float(f"{value:.9g}") for value in torch.cat(parameters).tolist()]}
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "moments-8-bit.json"), "w") as file:
    file.write(json.dumps(result) + "\n")
