"""diffusers' schedulers: ten steps with a network that is a formula, and the steps it was told; all in one fixture."""

import importlib

import numpy as np
from tools import noise

STEPS = 10
# _class_name and what differs from its defaults; "step": arguments of the scheduler's `step`.
DDIM = {"_class_name": "DDIMScheduler", "clip_sample": False}
CLIPPED = {"_class_name": "DDIMScheduler", "step": {"use_clipped_model_output": True}}
DPM = {"_class_name": "DPMSolverMultistepScheduler"}
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EULER = {"_class_name": "EulerDiscreteScheduler"}
SCHEDULERS = {
    "ddim": DDIM,
    "ddim-clipped": CLIPPED,
    "ddim-clipped-range": {**CLIPPED, "clip_sample_range": 2.5},
    "ddim-thresholded": {**CLIPPED, "thresholding": True, "sample_max_value": 2.0},
    "ddim-thresholded-one": {**CLIPPED, "thresholding": True},
    "ddim-trailing": {**DDIM, "timestep_spacing": "trailing"},
    "ddim-ends-noisy": {**DDIM, "set_alpha_to_one": False, "steps_offset": 1, **SD},
    "ddim-cosine": {**DDIM, "beta_schedule": "squaredcos_cap_v2"},
    "ddim-trained-betas": {**DDIM, "trained_betas": np.linspace(1e-3, 0.3, 30).tolist(), "num_train_timesteps": 30},
    "ddim-v-zero-snr": {
        **DDIM,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
    "ddim-sample": {**DDIM, "prediction_type": "sample"},
    "ddpm": {"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid", "clip_sample": False},
    "ddpm-linspace": {"_class_name": "DDPMScheduler", "timestep_spacing": "linspace"},
    "pndm": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1, **SD},
    "dpm": DPM,
    "dpm-first": {**DPM, "solver_order": 1, "timestep_spacing": "leading", "steps_offset": 1},
    "dpm-third": {**DPM, "solver_order": 3, "timestep_spacing": "trailing", **SD},
    "dpm-heun": {**DPM, "solver_type": "heun"},
    "dpm-ends-noisy": {**DPM, "solver_order": 1, "final_sigmas_type": "sigma_min"},
    "dpm-zero-snr": {**DPM, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "dpm-karras": {**DPM, "use_karras_sigmas": True},
    "unipc": {"_class_name": "UniPCMultistepScheduler"},
    "unipc-bh1": {
        "_class_name": "UniPCMultistepScheduler",
        "solver_type": "bh1",
        "solver_order": 1,
        "final_sigmas_type": "sigma_min",
    },
    "euler": {**EULER, **SD, "timestep_spacing": "leading", "steps_offset": 1},
    "euler-linspace": EULER,
    "euler-ends-noisy": {**EULER, "final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"},
    "euler-karras": {**EULER, "use_karras_sigmas": True},
    "edm": {"_class_name": "EDMEulerScheduler"},
    "edm-exponential": {"_class_name": "EDMEulerScheduler", "sigma_schedule": "exponential", "sigma_data": 1.0},
    "edm-dpm": {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 1.0},
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler"},
    "flow-shifted": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
}
UNIPC = {"_class_name": "UniPCMultistepScheduler"}
EDM = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 1.0}
NOISY = {"final_sigmas_type": "sigma_min"}
# The order of the last steps, lowered or not; and steps that draw noise, which is `FRESH` in each.
ENDS = {
    "dpm-lowered": {**DPM, **NOISY},
    "dpm-not-lowered": {**DPM, **NOISY, "lower_order_final": False},
    "dpm-third-lowered": {**DPM, **NOISY, "solver_order": 3},
    "dpm-third-not-lowered": {**DPM, "solver_order": 3, "lower_order_final": False},
    "unipc-lowered": {**UNIPC, **NOISY},
    "unipc-third-lowered": {**UNIPC, "solver_order": 3},
    "unipc-third-ends-noisy": {**UNIPC, **NOISY, "solver_order": 3, "solver_type": "bh1"},
    "unipc-third-not-lowered": {**UNIPC, **NOISY, "solver_order": 3, "lower_order_final": False},
    "edm-dpm-lowered": {**EDM, **NOISY},
    "euler-ancestral": {"_class_name": "EulerAncestralDiscreteScheduler"},
    "dpm-sde": {**DPM, "algorithm_type": "sde-dpmsolver++"},
    "dpm-sde-lowered": {**DPM, **NOISY, "algorithm_type": "sde-dpmsolver++"},
    "ddpm-large": {"_class_name": "DDPMScheduler", "variance_type": "fixed_large", "clip_sample": False},
}
SDE = {**DPM, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}
THIRD_HEUN = {**DPM, "solver_order": 3, "solver_type": "heun"}
BELOW_ONE = {"thresholding": True, "sample_max_value": 0.4}
KARRAS = {"use_karras_sigmas": True, **NOISY}
# Keys whose effect shows in combination with others alone.
COMBINED = {
    "ddim-thresholded-below-one": {**CLIPPED, **BELOW_ONE, "prediction_type": "sample"},
    "dpm-thresholded-below-one": {**DPM, **BELOW_ONE, "prediction_type": "sample"},
    "dpm-sde-heun": SDE,
    "dpm-sde-heun-ends-noisy": {**SDE, **NOISY, "lower_order_final": False},
    "dpm-third-heun": THIRD_HEUN,
    "dpm-third-heun-not-lowered": {
        **DPM,
        **NOISY,
        "solver_order": 3,
        "solver_type": "heun",
        "lower_order_final": False,
    },
    "dpm-karras-ends-noisy": {**DPM, **KARRAS},
    "unipc-karras-ends-noisy": {**UNIPC, **KARRAS},
    "unipc-karras-third": {**UNIPC, **KARRAS, "solver_order": 3},
    "euler-karras-ends-noisy": {**EULER, **KARRAS, "timestep_spacing": "trailing"},
}
# Where we differ from diffusers: `read_scheduler` states by how much, for the exact denoiser of Gaussian data.
PNDM = {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
LARGE = {"_class_name": "DDPMScheduler", "variance_type": "fixed_large", "clip_sample": False}
DIFFERENT = {
    "ddim-linspace": {**DDIM, "timestep_spacing": "linspace"},
    "ddim-trailing": {**DDIM, "timestep_spacing": "trailing", "num_train_timesteps": 996},
    "ddim-leading": {**DDIM, "num_train_timesteps": 996},
    "ddim-clipped-often": {"_class_name": "DDIMScheduler", "clip_sample_range": 0.5},
    "ddim-clipped-formula": {"_class_name": "DDIMScheduler"},  # `network`, whose x0_hat leaves [-1, 1] in most steps
    "ddpm-trailing": {**LARGE, "timestep_spacing": "trailing"},
    "pndm-leading": PNDM,
    "pndm-runge-kutta": {**PNDM, "skip_prk_steps": False},
    "pndm-linspace": {**PNDM, "timestep_spacing": "linspace"},
}
MEAN, STD, FORMULA = 0.3, 0.5, "ddim-clipped-formula"
CASES = {
    "schedulers": SCHEDULERS,
    "schedulers-ends": ENDS,
    "schedulers-combined": COMBINED,
    "schedulers-different": DIFFERENT,
}
FRESH = noise((2, 2, 2, 1), "fresh")
# Some whose steps draw noise, and PNDM, which has no equal here: their steps alone are compared.
STEPS_ALONE = ("ddpm", "ddpm-linspace", "pndm")


def network(xp, x, told):
    """What stands for a network, [b, ...], for x [b, ...] and what it is told, [] or [b, 1, ...]."""
    return 0.6 * xp.tanh(x) * xp.cos(told / 400) + 0.2 * x


def exact_eps(scheduler, x, step):
    """eps_hat of the exact denoiser of N(MEAN, STD^2), [b, ...], for xt [b, ...] at a step of a scheduler's chain."""
    alpha, sigma = scheduler.alphas_cumprod[step] ** 0.5, (1 - scheduler.alphas_cumprod[step]) ** 0.5
    return sigma * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


def reference(name, config):
    """({}, {name.told [10], name.start and name.end of ten steps [2, 2, 2, 1] in diffjax's scale})."""
    found = {
        case: _ten_steps(case, one, exact=name == "schedulers-different" and case != FORMULA)
        for case, one in config.items()
    }
    return {}, {f"{case}.{key}": value for case, one in found.items() for key, value in one.items()}


def _ten_steps(name, config, exact=False):
    import diffusers
    import torch

    for module in ("ddpm", "euler_ancestral_discrete", "dpmsolver_multistep"):
        module = importlib.import_module(f"diffusers.schedulers.scheduling_{module}")
        module.randn_tensor = lambda shape, dtype=None, **options: torch.from_numpy(FRESH).to(dtype)
    options = {key: value for key, value in config.items() if key not in ("_class_name", "step")}
    scheduler = getattr(diffusers, config["_class_name"])(**options)
    scheduler.set_timesteps(STEPS)
    told = scheduler.timesteps.numpy().astype(np.float64)
    if config["_class_name"] == "PNDMScheduler":
        told = np.unique(told)[::-1]  # it takes the first steps more than once
    if name in STEPS_ALONE:
        return {"told": told}
    z = noise((2, 2, 2, 1), "start")
    x = torch.from_numpy(z) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    first = float(scheduler.sigmas[0]) if hasattr(scheduler, "sigmas") else 0.0
    in_sigma = config["_class_name"].startswith("Euler")  # its state is xt/alpha
    start = x.numpy() / np.sqrt(1 + first**2) if in_sigma else x.numpy()
    for step in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, step) if hasattr(scheduler, "scale_model_input") else x
        answer = exact_eps(scheduler, x, step) if exact else network(torch, scaled, step.double())
        x = scheduler.step(answer, step, x, **config.get("step", {})).prev_sample
    return {"told": told, "start": start, "end": x.double().numpy()}
