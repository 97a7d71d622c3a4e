"""Reference cases for samplers and sigma schedules that diffusers lacks: `python make.py` writes cases.json and tensors.safetensors beside it.

DPM++ 2S a, DPM fast, DPM adaptive and polyexponential come from k-diffusion (PyPI, 0.1.1). The rest is written here a second time, in float64
numpy, from the published formulas: Heun++ 2 (sd-webui-samplers-scheduler), RES multistep (arXiv 2308.02157), ER-SDE-3 (arXiv 2309.06169), CFG++
(arXiv 2406.08070), iPNDM (arXiv 2202.09778, as in diff-sampler); schedules: ComfyUI's and A1111's, Align Your Steps (arXiv 2404.14507).

Needs numpy, torch, safetensors and k-diffusion. The format is that of the reference cases of kind `scheduler`; what is added:
`params.unconditional` = true: the model's prediction without the prompt is g(x, t) = 0.7 tanh(0.6 x - 0.2 cos(t / 200)).
"""
import functools
import importlib.util
import json
import math
import pathlib
import sys
import types

import numpy as np
import torch
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
BASE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2, 0)
TRAINED = (((1 - ALPHAS) / ALPHAS) ** 0.5).double().numpy()
LOGS = np.log(TRAINED)


@functools.cache
def k_diffusion():
    """Its sampling module alone: the package's other modules import what is not needed here."""
    found = next(pathlib.Path(p, "k_diffusion") for p in sys.path if pathlib.Path(p, "k_diffusion", "sampling.py").exists())
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(found)]
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    package.utils = utils
    sys.modules["torchdiffeq"] = types.SimpleNamespace(odeint=None)
    sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))
    spec = importlib.util.spec_from_file_location("k_diffusion.sampling", found / "sampling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timestep(sigma):
    return float(np.interp(math.log(sigma), LOGS, np.arange(1000)))


def f(x, t):
    return 0.9 * np.tanh(0.8 * x + 0.3 * np.sin(t / 150))


def g(x, t):
    return 0.7 * np.tanh(0.6 * x - 0.2 * np.cos(t / 200))


def denoise(x, sigma, function=f):
    return x - sigma * function(x / math.sqrt(sigma**2 + 1), timestep(sigma))


def ancestral(sigma, to, eta):
    up = min(to, eta * math.sqrt(to**2 * (sigma**2 - to**2) / sigma**2))
    return math.sqrt(to**2 - up**2), up


# Samplers: generators that yield the latents after each step. `draw()` gives the next noise.


def ipndm(x, sigmas, draw, eta):
    slopes = []
    for s, n in zip(sigmas, sigmas[1:]):
        slopes.append((x - denoise(x, s)) / s)
        last = slopes[::-1][:4]
        if n == 0:
            x = denoise(x, s)
        else:
            ab = {1: [1], 2: [1.5, -0.5], 3: [23 / 12, -4 / 3, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -3 / 8]}[len(last)]
            x = x + (n - s) * sum(c * d for c, d in zip(ab, last))
        yield x


def heunpp2(x, sigmas, draw, eta):
    top = sigmas[0]
    slope = lambda v, s: (v - denoise(v, s)) / s
    for i in range(len(sigmas) - 1):
        s, n = sigmas[i], sigmas[i + 1]
        d1 = slope(x, s)
        left = len(sigmas) - 2 - i
        if left == 0:
            mixed = d1
        else:
            x2 = x + (n - s) * d1
            d2 = slope(x2, n)
            if left == 1:
                w2 = n / (2 * top)
                mixed = (1 - w2) * d1 + w2 * d2
            else:
                m = sigmas[i + 2]
                d3 = slope(x2 + (m - n) * d2, m)
                w2, w3 = n / (3 * top), m / (3 * top)
                mixed = (1 - w2 - w3) * d1 + w2 * d2 + w3 * d3
        x = x + (n - s) * mixed
        yield x


def res_multistep(x, sigmas, draw, eta, cfg_pp=False):
    old = None
    for i in range(len(sigmas) - 1):
        s, n = sigmas[i], sigmas[i + 1]
        full = denoise(x, s)
        base = denoise(x, s, g) if cfg_pp else full
        down, up = ancestral(s, n, eta)
        if old is None or down == 0:
            x = full + (down / s) * (x - base)
        else:
            # Exponential Runge-Kutta of order 2 with the previous evaluation as its second node.
            h = math.log(s) - math.log(down)
            c2 = (math.log(old[1]) - math.log(sigmas[i - 1])) / h
            p1 = (1 - math.exp(-h)) / h
            p2 = (math.exp(-h) - 1 + h) / h**2
            shifted = x + full - base
            x = math.exp(-h) * shifted + h * ((p1 - p2 / c2) * base + p2 / c2 * old[0])
        if n > 0 and up > 0:
            x = x + up * draw()
        old = (base, down)
        yield x


def er_sde(x, sigmas, draw, eta):
    phi = lambda s: s * (np.exp(s**0.3) + 10)
    values = []
    for i in range(len(sigmas) - 1):
        s, n = sigmas[i], sigmas[i + 1]
        values.append(denoise(x, s))
        if n == 0:
            yield values[-1]
            return
        r = phi(n) / phi(s)
        new = r * x + (1 - r) * values[-1]
        grid = n + np.arange(200) * (s - n) / 200
        first = lambda k: (values[k] - values[k - 1]) / (sigmas[k] - sigmas[k - 1])
        if i >= 1:
            new = new + (n - s + np.sum((s - n) / 200 / phi(grid)) * phi(n)) * first(i)
        if i >= 2:
            second = (first(i) - first(i - 1)) / ((s - sigmas[i - 2]) / 2)
            new = new + ((n - s) ** 2 / 2 + np.sum((grid - s) * (s - n) / 200 / phi(grid)) * phi(n)) * second
        x = new + math.sqrt(max(n**2 - s**2 * r**2, 0)) * draw()
        yield x


def euler_cfg_pp(x, sigmas, draw, eta):
    for s, n in zip(sigmas, sigmas[1:]):
        down, up = ancestral(s, n, eta)
        noise = (x - denoise(x, s, g)) / s
        x = denoise(x, s) + down * noise
        if up > 0:
            x = x + up * draw()
        yield x


def dpmpp_2m_cfg_pp(x, sigmas, draw, eta):
    old = None
    for i in range(len(sigmas) - 1):
        s, n = sigmas[i], sigmas[i + 1]
        full, base = denoise(x, s), denoise(x, s, g)
        new = full + n / s * (x - base)
        if old is not None and n > 0:
            h, before = math.log(s / n), math.log(sigmas[i - 1] / s)
            new = new + (1 - math.exp(-h)) * h / (2 * before) * (full - old)
        old, x = base, new
        yield x


def dpmpp_2s_ancestral_cfg_pp(x, sigmas, draw, eta):
    for s, n in zip(sigmas, sigmas[1:]):
        down, up = ancestral(s, n, eta)
        full, base = denoise(x, s), denoise(x, s, g)
        if down == 0:
            new = base
        else:
            middle = math.exp((math.log(s) + math.log(down)) / 2)
            second = denoise(middle / s * x + (1 - middle / s) * base, middle, g)
            new = down / s * x + (1 - down / s) * second
        x = new + full - base + (up * draw() if n > 0 else 0)
        yield x


def from_k_diffusion(name):
    def run(x, sigmas, draw, eta):
        K = k_diffusion()
        model = lambda v, sigma, **_: torch.from_numpy(denoise(v.numpy(), float(sigma.flatten()[0])))
        noise = lambda *_: torch.from_numpy(draw())
        start, levels = torch.from_numpy(x), torch.from_numpy(np.array(sigmas))
        seen = []
        call = lambda info: seen.append((info["x"].numpy().copy(), info.get("n_accept")))
        if name == "dpm_adaptive":
            end = K.sample_dpm_adaptive(model, start, sigmas[-1], sigmas[0], callback=call, disable=True, eta=eta, noise_sampler=noise)
            kept, accepted = [], 0
            for value, count in seen:
                if count > accepted:
                    kept.append(value)
                accepted = count
            assert np.array_equal(kept[-1], end.numpy())
            return kept
        if name == "dpm_fast":
            end = K.sample_dpm_fast(model, start, sigmas[-1], sigmas[0], STEPS, callback=call, disable=True, eta=eta, noise_sampler=noise)
        else:
            end = K.sample_dpmpp_2s_ancestral(model, start, levels, callback=call, disable=True, eta=eta, noise_sampler=noise)
        return [value for value, _ in seen[1:]] + [end.numpy()]

    return run


# Schedules: falling levels with what they end at.


def schedule(name, n):
    high, low = TRAINED[-1], TRAINED[0]
    at = lambda t: math.exp(np.interp(t, np.arange(1000), LOGS))
    if name == "polyexponential":
        return k_diffusion().get_sigmas_polyexponential(n, low, high, rho=1.3).double().tolist()[:-1]
    if name == "kl_optimal":
        return [math.tan(math.atan(low) * i / (n - 1) + math.atan(high) * (1 - i / (n - 1))) for i in range(n)]
    if name.startswith("align_your_steps"):
        table = {
            "align_your_steps": [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029],
            "align_your_steps_sdxl": [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029],
        }[name]
        return np.exp(np.interp(np.linspace(0, 1, n), np.linspace(0, 1, 11), np.log(table))).tolist()
    if name == "sgm_uniform":
        return [at(t) for t in np.linspace(999, 0, n + 1)[:-1]]
    if name == "simple":
        return [TRAINED[-(1 + int(i * 1000 / n))] for i in range(n)]
    if name == "ddim_uniform":
        return list(TRAINED[1 :: max(1000 // n, 1)][::-1])
    if name == "linear_quadratic":
        half, rest = n // 2, n - n // 2
        linear = [i * 0.025 / half for i in range(half)]
        # A parabola that goes on from the line, with its value and slope there, and reaches 1 after `rest` more steps.
        slope = 0.025 / half
        bend = (1 - 0.025 - slope * rest) / rest**2
        curve = [0.025 + slope * k + bend * k**2 for k in range(rest)]
        return [high * (1 - v) for v in linear + curve]
    assert name == "normal"
    return np.interp(np.linspace(999, 0, n), np.arange(1000), TRAINED).tolist()


SAMPLERS = {
    "sample_ipndm": ipndm,
    "sample_heunpp2": heunpp2,
    "sample_res_multistep": res_multistep,
    "sample_res_multistep_cfg_pp": lambda *args: res_multistep(*args, cfg_pp=True),
    "sample_er_sde": er_sde,
    "sample_euler_ancestral_cfg_pp": euler_cfg_pp,
    "sample_dpmpp_2m_cfg_pp": dpmpp_2m_cfg_pp,
    "sample_dpmpp_2s_ancestral_cfg_pp": dpmpp_2s_ancestral_cfg_pp,
    "sample_dpmpp_2s_ancestral": from_k_diffusion("dpmpp_2s_ancestral"),
    "sample_dpm_fast": from_k_diffusion("dpm_fast"),
    "sample_dpm_adaptive": from_k_diffusion("dpm_adaptive"),
}
RANDOM = np.random.default_rng(4)
STEPS = 0
cases, tensors = [], {}


def add(label, scheduler, steps, levels, config, eta=0.0, ends_at_zero=True):
    global STEPS
    STEPS = steps
    sigmas = [float(np.float32(v)) for v in levels] + ([0.0] if ends_at_zero else [])
    noise = RANDOM.standard_normal((1, 4, 4, 4)).astype(np.float32)
    drawn = []

    def draw():
        drawn.append(RANDOM.standard_normal(noise.shape).astype(np.float32))
        return drawn[-1].astype(np.float64)

    run = SAMPLERS[scheduler] if scheduler in SAMPLERS else ipndm
    x = noise.astype(np.float64) * sigmas[0]
    values = np.array(list(run(x, sigmas, draw, eta)))
    peak = float(np.abs(values).max())
    put = {"noise": noise, "steps": values, "sigmas": np.array(sigmas), "timesteps": np.array([timestep(s) for s in levels[: len(sigmas) - 1]])}
    put["init_noise_sigma"] = np.array([sigmas[0]])
    if drawn:
        put["noises"] = np.array(drawn)
    tensors.update({f"{label}/{key}": np.ascontiguousarray(value, dtype=np.float32) for key, value in put.items()})
    inputs = {key: f"{label}/{key}" for key in ("noise", "noises") if key in put}
    expected = {key: f"{label}/{key}" for key in ("steps", "sigmas", "timesteps", "init_noise_sigma")}
    # Timesteps come through the logarithm of float32 levels: 1e-4 of a step of training, against values around the peak.
    tolerance = {"atol": round(max(2e-5, 2e-5 * min(peak, 20)), 7), "rtol": 2e-5}
    cases.append(
        {
            "name": label,
            "kind": "scheduler",
            "params": {
                "scheduler": scheduler,
                "config": {**BASE, "timestep_spacing": "linspace", **config},
                "numInferenceSteps": steps,
                "stepArgs": {"eta": eta},
                **({"unconditional": True} if scheduler.endswith("cfg_pp") else {}),
            },
            "tensors": "tensors.safetensors",
            "inputs": inputs,
            "expected": expected,
            "tolerance": tolerance,
            "tolerances": {"timesteps": {"atol": 2e-2, "rtol": 0}},
            "reference": "k-diffusion 0.1.1" if scheduler in ("sample_dpmpp_2s_ancestral", "sample_dpm_fast", "sample_dpm_adaptive") else "float64 numpy, make.py",
        }
    )


for name in SAMPLERS:
    short = name.removeprefix("sample_")
    if short in ("dpm_fast", "dpm_adaptive"):
        for steps in (7, 8, 9) if short == "dpm_fast" else (10,):
            count = steps // 3 + 1 if short == "dpm_fast" else steps
            levels = np.exp(np.linspace(LOGS[-1], LOGS[0], count + 1)).tolist()
            add(f"{short}-{steps}", name, steps, levels, {}, ends_at_zero=False)
            add(f"{short}-{steps}-eta", name, steps, levels, {}, eta=0.6, ends_at_zero=False)
        continue
    for plan, steps in (("normal", 7), ("simple", 8)):
        config = {} if plan == "normal" else {"named_schedule": plan}
        add(f"{short}-{plan}", name, steps, schedule(plan, steps), config)
    if "ancestral" in short or short in ("res_multistep", "res_multistep_cfg_pp"):
        add(f"{short}-eta", name, 9, schedule("normal", 9), {}, eta=1.0)

for name in ("polyexponential", "kl_optimal", "align_your_steps", "align_your_steps_sdxl", "sgm_uniform", "simple", "ddim_uniform", "linear_quadratic"):
    for steps in (6, 11, 13):
        config = {"named_schedule": name.removesuffix("_sdxl")}
        if name.endswith("_sdxl"):
            config["align_your_steps"] = "sdxl"
        if name == "polyexponential":
            config["rho"] = 1.3
        add(f"schedule-{name}-{steps}", "sample_ipndm", steps, schedule(name, steps), config)

save_file(tensors, HERE / "tensors.safetensors")
(HERE / "tensors.safetensors").chmod(0o644)
(HERE / "cases.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
print(len(cases), "cases")
