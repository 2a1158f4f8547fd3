"""The keys of diffusers' scheduler configurations: their defaults, and the values that diffjax has."""

from typing import Any

_CHAIN = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "trained_betas": None,
    "steps_offset": 0,
}
_SHARED = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
}
_CLIPPED = {"clip_sample": True, "clip_sample_range": 1.0}
_DYNAMIC = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_LOWERED = {"lower_order_final": True}
_RESCALED = {"rescale_betas_zero_snr": False}
_LEADING = {"timestep_spacing": ("leading", "trailing", "linspace")}
_EVEN = {"timestep_spacing": ("linspace", "leading", "trailing")}
_LAST = {"final_sigmas_type": ("zero", "sigma_min")}
_ONLY_KARRAS = {
    "use_karras_sigmas": (False, True),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_dynamic_shifting": (False, None),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "shift_terminal": (None,),
}
_EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
_EDM_ONLY = {"prediction_type": ("epsilon",), "sigma_schedule": ("karras", "exponential"), **_LAST}

# _class_name -> ({key: default}, {key: values that diffjax has, the default first})
KEYS: dict[str, tuple[dict[str, Any], dict[str, tuple[Any, ...]]]] = {
    "DDIMScheduler": (
        {**_CHAIN, **_CLIPPED, **_DYNAMIC, **_RESCALED, "set_alpha_to_one": True},
        {**_SHARED, **_LEADING},
    ),
    "DDPMScheduler": (
        {**_CHAIN, **_CLIPPED, **_DYNAMIC, **_RESCALED},
        {**_SHARED, **_LEADING, "variance_type": ("fixed_small", "fixed_small_log", "fixed_large")},
    ),
    "PNDMScheduler": (
        {**_CHAIN, "set_alpha_to_one": False, "skip_prk_steps": False},
        {**_SHARED, **_LEADING},
    ),
    "EulerDiscreteScheduler": (
        {**_CHAIN, **_RESCALED},
        {
            **_SHARED,
            **_EVEN,
            **_LAST,
            **_ONLY_KARRAS,
            "interpolation_type": ("linear",),
            "timestep_type": ("discrete",),
        },
    ),
    "EulerAncestralDiscreteScheduler": ({**_CHAIN, **_RESCALED}, {**_SHARED, **_EVEN}),
    "DPMSolverMultistepScheduler": (
        {**_CHAIN, **_DYNAMIC, **_RESCALED, **_LOWERED, "solver_order": 2},
        {
            **_SHARED,
            **_EVEN,
            **_LAST,
            **_ONLY_KARRAS,
            "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
            "solver_type": ("midpoint", "heun"),
            "lambda_min_clipped": (float("-inf"), None),
            "euler_at_final": (False,),
        },
    ),
    "UniPCMultistepScheduler": (
        {**_CHAIN, **_DYNAMIC, **_RESCALED, **_LOWERED},
        {
            **_SHARED,
            **_EVEN,
            **_LAST,
            **_ONLY_KARRAS,
            "solver_order": (2, 1, 3),
            "solver_type": ("bh2", "bh1"),
            "predict_x0": (True,),
            "disable_corrector": ([], None),
            "solver_p": (None,),
        },
    ),
    "EDMEulerScheduler": (_EDM, _EDM_ONLY),
    "EDMDPMSolverMultistepScheduler": (
        {**_EDM, **_DYNAMIC, **_LOWERED, "solver_order": 2},
        {
            **_EDM_ONLY,
            "algorithm_type": ("dpmsolver++",),
            "solver_type": ("midpoint",),
            "euler_at_final": (False,),
        },
    ),
    "FlowMatchEulerDiscreteScheduler": (
        {"num_train_timesteps": 1000, "shift": 1.0},
        {
            "use_dynamic_shifting": (False,),
            "invert_sigmas": (False,),
            "shift_terminal": (None,),
            "use_karras_sigmas": (False, None),
            "use_exponential_sigmas": (False, None),
            "use_beta_sigmas": (False, None),
            "stochastic_sampling": (False,),
        },
    ),
    "ScoreSdeVeScheduler": (
        {"sigma_min": 0.01, "sigma_max": 1348.0, "snr": 0.15},
        {"correct_steps": (1, 0), "sampling_eps": (1e-5,)},
    ),
}

# _class_name -> keys of that scheduler without effect on what is read; `read_scheduler` says why.
WITHOUT_EFFECT: dict[str, tuple[str, ...]] = {
    "DPMSolverMultistepScheduler": ("variance_type", "flow_shift", "time_shift_type"),
    "UniPCMultistepScheduler": ("flow_shift", "time_shift_type"),
    "EDMEulerScheduler": ("num_train_timesteps",),
    "EDMDPMSolverMultistepScheduler": ("num_train_timesteps", "lower_order_final"),
    "FlowMatchEulerDiscreteScheduler": (
        "base_shift",
        "max_shift",
        "base_image_seq_len",
        "max_image_seq_len",
        "time_shift_type",
    ),
    "ScoreSdeVeScheduler": ("num_train_timesteps", "snr", "correct_steps"),
}

ALL_KEYS = {key for defaults, only in KEYS.values() for key in (*defaults, *only)}
ALL_KEYS |= {key for keys in WITHOUT_EFFECT.values() for key in keys}
