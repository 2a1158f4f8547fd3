"""Schedulers: the file's own steps are told to the network, and ten of them end where diffusers' do."""

import inspect
import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_scheduler as torch_side
from tools import load_fixture

from diffjax import Diffusion, Gaussian, Network, exact_denoiser, make_denoiser, sample
from diffjax.interop import SCHEDULERS, LoweredAtTheEnd, read_scheduler
from diffjax.samplers import DPMpp3MPublished, step_weights

DIFFERENT = "schedulers-different"
CONFIGS = {
    name: config for key, cases in torch_side.CASES.items() if key != DIFFERENT for name, config in cases.items()
}
NAMES = list(CONFIGS)
# Where diffusers is not quite ours: it rounds the steps of Karras's grid, interpolates sigmas of fractional steps
# otherwise, and takes 2^-12 for no signal.
ERROR = {"dpm-zero-snr": 1e-3, "dpm-karras": 1e-3}
TOLD = {"euler-karras": 0.02, **{name: 0.5 for name in NAMES if name.startswith(("dpm-karras", "unipc-karras"))}}
OFTEN = ("ddim-clipped", "ddim-trailing", "dpm", "edm", "flow-shifted", "unipc-third-lowered", "dpm-sde-heun")
OFTEN += ("dpm-third-heun", "unipc-karras-ends-noisy", "ddim-thresholded-below-one")


def apply(params, x, c_noise, cond=None, *, key=None):
    return torch_side.network(jnp, x, c_noise[:, None, None, None])


NETWORK = Network(lambda key, x, c_noise, cond=None: {}, apply)


def ours(config, start):
    """(what the network is told [n], what ten steps end in)."""
    sampling = read_scheduler({key: value for key, value in config.items() if key != "step"}, torch_side.STEPS)
    told = sampling.parameterisation.noise_level(sampling.process, jnp.asarray(sampling.ts))
    if start is None:
        return told, None
    denoiser = make_denoiser(Diffusion(NETWORK, sampling.process, sampling.parameterisation), {})
    return told, end_of(sampling, denoiser, start)


def end_of(sampling, denoiser, start):
    """What `sample` ends in, with the noise that diffusers was given."""
    for transform in sampling.denoiser_transforms:
        denoiser = transform(denoiser)
    key, xt = jax.random.key(0), jnp.asarray(start)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("_ddim", "_multistep", "_sde_dpmpp"):
            name = f"diffjax.samplers.{module}.normal_like"
            patch.setattr(name, lambda keys, x: jnp.asarray(torch_side.FRESH, x.dtype))
        return sample(
            key, sampling.process, denoiser, xt, sampling.ts, sampling.stepper, final_denoise=sampling.final_denoise
        )


def compare(name, config, expected):
    told, end = ours(config, expected.get("start"))
    if config["_class_name"] == "PNDMScheduler":
        told = np.unique(np.round(told))[::-1]  # it takes the first steps more than once
    np.testing.assert_allclose(told[: torch_side.STEPS], expected["told"], atol=TOLD.get(name, 1e-3))
    if end is not None:
        error = np.max(np.abs(np.asarray(end) - expected["end"])) / np.max(np.abs(expected["end"]))
        assert error < ERROR.get(name, 1e-4), f"{error:.1e} of the largest"


@pytest.mark.parametrize("name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_frozen(name):
    fixture = next(key for key, cases in torch_side.CASES.items() if name in cases)
    config, _, outputs = load_fixture(fixture)
    assert config == json.loads(json.dumps(torch_side.CASES[fixture]))
    expected = {key.rsplit(".", 1)[1]: value for key, value in outputs.items() if key.rsplit(".", 1)[0] == name}
    compare(name, config[name], expected)


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_live(name):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    _, outputs = torch_side.reference("schedulers", {name: CONFIGS[name]})
    compare(name, CONFIGS[name], {key.rsplit(".", 1)[1]: value for key, value in outputs.items()})


# By how much we differ from diffusers' ten steps, as `read_scheduler` states it: RMS of the difference over the data's
# standard deviation, for the exact denoiser of N(0.3, 0.5^2) and a chain of 1000 steps (or 996).
SIZES = {
    "ddim-linspace": 0.142,
    "ddim-trailing": 0.015,
    "ddim-leading": 0.0,
    "ddim-clipped-often": 0.0,
    "ddim-clipped-formula": 0.97,
    "ddpm-trailing": 0.307,
    "pndm-leading": 0.0,
    "pndm-runge-kutta": 0.0,
    "pndm-linspace": 0.105,
}


@pytest.mark.slow
def test_where_we_differ_from_diffusers_it_is_by_the_sizes_that_read_scheduler_states():
    config, _, outputs = load_fixture(DIFFERENT)
    assert config == json.loads(json.dumps(torch_side.DIFFERENT))
    for name, size in SIZES.items():
        sampling, start = read_scheduler(config[name], torch_side.STEPS), outputs[f"{name}.start"]
        data, std = Gaussian(jnp.full(start.shape[1:], torch_side.MEAN), torch_side.STD**2), torch_side.STD
        end = end_of(sampling, exact_denoiser(data, sampling.process), start)
        if name == torch_side.FORMULA:
            end, std = ours(config[name], start)[1], 1.0
        found = np.sqrt(np.mean((np.asarray(end) - outputs[f"{name}.end"]) ** 2)) / std
        np.testing.assert_allclose(found, size, rtol=0.05, atol=1e-5, err_msg=name)
        assert size == 0 or f"{size:.2g}" in (read_scheduler.__doc__ or ""), name


@pytest.mark.parametrize("offset", [0, 1])
def test_ddim_with_linspace_steps_from_each_of_its_steps_to_the_next(offset):
    """Song et al. 2021, eq. 12 at eta = 0, in NumPy: the steps of linspace do not lie K // m apart."""
    keys = {"timestep_spacing": "linspace", "set_alpha_to_one": not offset, "steps_offset": offset}
    steps = np.round(np.linspace(0, 999, 10))[::-1].astype(int)
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    x = start = np.random.RandomState(0).standard_normal((2, 2, 2, 1))
    last = kept[0] if offset else 1.0
    for now, then in zip(kept[steps], [*kept[steps[1:]], last], strict=True):
        eps = torch_side.network(np, x, steps[kept[steps] == now])
        x0 = (x - np.sqrt(1 - now) * eps) / np.sqrt(now)
        x = np.sqrt(then) * x0 + np.sqrt(1 - then) * eps
    told, end = ours({**torch_side.DDIM, **keys}, start)
    np.testing.assert_allclose(told, steps, atol=1e-9)
    np.testing.assert_allclose(end, x, rtol=1e-8)


def key_signature(config, steps):
    """All that `read_scheduler` makes of a file, as one text: what a key with an effect must change."""
    s = read_scheduler(config, steps, where="where")
    weights = step_weights(s.stepper, s.process, np.asarray(s.ts))
    thresholds = [repr(sorted(t.keywords.items())) + t.func.__name__ for t in s.denoiser_transforms]
    arrays = [np.asarray(leaf).round(12).tolist() for leaf in jax.tree.leaves((s.process, s.parameterisation, weights))]
    return repr(
        (s.ts.tolist(), s.final_denoise, thresholds, arrays, jax.tree.structure((s.parameterisation, s.stepper)))
    )


def what_becomes_of(key, base, config):
    """ "honoured", "listed", "dropped", "listed, but has an effect", or the message of the ValueError."""
    try:
        listed = key in read_scheduler(config, 10, where="where").without_effect
    except ValueError as error:
        return str(error)
    changed = key_signature(config, 10) != key_signature(base, 10)
    return ("honoured", "listed, but has an effect")[listed] if changed else ("dropped", "listed")[listed]


# Every key of the schedulers that we read, as diffusers' constructors (0.42) have them, with a value that is not its
# default, and other keys without which it has no effect in diffusers either.
BETAS = {"trained_betas": np.linspace(1e-3, 0.03, 1000).tolist()}
CHAIN = {"num_train_timesteps": 900, "beta_start": 2e-4, "beta_end": 0.03, "beta_schedule": "scaled_linear", **BETAS}
CHAIN |= {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "steps_offset": 1}
CLIP = {"clip_sample": False, "clip_sample_range": 0.5}
DYNAMIC = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 0.7}
ZERO_SNR = {"rescale_betas_zero_snr": True}
SIGMAS = {"use_karras_sigmas": True, "use_exponential_sigmas": True, "use_beta_sigmas": True}
MULTISTEP = {"solver_order": 1, "lower_order_final": False, "final_sigmas_type": "sigma_min", "use_flow_sigmas": True}
MULTISTEP |= {"flow_shift": 3.0, "use_dynamic_shifting": True, "time_shift_type": "linear"}
EDM_KEYS = {"sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 1.0, "sigma_schedule": "exponential", "rho": 5.0}
EDM_KEYS |= {"num_train_timesteps": 500, "prediction_type": "v_prediction", "final_sigmas_type": "sigma_min"}
SHIFTS = {"base_shift": 0.4, "max_shift": 2.0, "base_image_seq_len": 128, "max_image_seq_len": 512}
KEYS = {
    "DDIMScheduler": {**CHAIN, **CLIP, **DYNAMIC, **ZERO_SNR, "set_alpha_to_one": False},
    "DDPMScheduler": {**CHAIN, **CLIP, **DYNAMIC, **ZERO_SNR, "variance_type": "fixed_large"},
    "PNDMScheduler": {**CHAIN, "skip_prk_steps": True, "set_alpha_to_one": True},
    "EulerDiscreteScheduler": {**CHAIN, **ZERO_SNR, **SIGMAS, "final_sigmas_type": "sigma_min", "sigma_min": 0.1}
    | {"interpolation_type": "log_linear", "sigma_max": 10.0, "timestep_type": "continuous"},
    "EulerAncestralDiscreteScheduler": {**CHAIN, **ZERO_SNR},
    "DPMSolverMultistepScheduler": {**CHAIN, **DYNAMIC, **ZERO_SNR, **SIGMAS, **MULTISTEP, "use_lu_lambdas": True}
    | {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "euler_at_final": True, "variance_type": "learned"}
    | {"lambda_min_clipped": -5.1},
    "UniPCMultistepScheduler": {**CHAIN, **DYNAMIC, **ZERO_SNR, **SIGMAS, **MULTISTEP, "predict_x0": False}
    | {"solver_type": "bh1", "disable_corrector": [0], "solver_p": "x", "sigma_min": 0.1, "sigma_max": 10.0}
    | {"shift_terminal": 0.1},
    "EDMEulerScheduler": EDM_KEYS,
    "EDMDPMSolverMultistepScheduler": {**EDM_KEYS, **DYNAMIC, "solver_order": 1, "lower_order_final": False}
    | {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "euler_at_final": True},
    "FlowMatchEulerDiscreteScheduler": {**SHIFTS, **SIGMAS, "num_train_timesteps": 900, "shift": 3.0}
    | {"use_dynamic_shifting": True, "invert_sigmas": True, "shift_terminal": 0.1, "time_shift_type": "linear"}
    | {"stochastic_sampling": True},
    "ScoreSdeVeScheduler": {"num_train_timesteps": 500, "snr": 0.2, "sigma_min": 0.02, "sigma_max": 50.0}
    | {"sampling_eps": 1e-3, "correct_steps": 0},
}
NEEDS = {
    "clip_sample_range": {"clip_sample": True},
    "dynamic_thresholding_ratio": {"thresholding": True, "sample_max_value": 2.0},
    "sample_max_value": {"thresholding": True},
    "steps_offset": {"timestep_spacing": "leading"},
    "rescale_betas_zero_snr": {"prediction_type": "v_prediction"},
    "lower_order_final": {"final_sigmas_type": "sigma_min"},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_key_of_a_file_is_honoured_or_refused_or_listed_as_without_effect(name):
    outcomes = {}
    for key, value in KEYS[name].items():
        base = {"_class_name": name, **NEEDS.get(key, {})}
        outcomes[key] = what_becomes_of(key, base, {**base, key: value})
        if outcomes[key] == "listed":
            assert f"`{key}`" in (read_scheduler.__doc__ or ""), f"{key} is not listed where users read"
        elif outcomes[key] != "honoured":
            message = rf"where: {key} is {re.escape(repr(value))}; diffjax has .*; edit the file, or give"
            assert re.match(message, outcomes[key]), outcomes[key]
    _, defaults, only = SCHEDULERS[name]
    assert set(defaults) - set(KEYS[name]) == set(), "a key of ours that the list above lacks"
    assert "honoured" in outcomes.values()
    with pytest.raises(ValueError, match="where: unknown key unheard_of, with value 3; edit the file"):
        read_scheduler({"_class_name": name, "unheard_of": 3}, 10, where="where")
    foreign = {"skip_prk_steps": True, "use_karras_sigmas": True, "correct_steps": 7, "shift": 9.0, "sigma_data": 2.0}
    foreign = {key: value for key, value in foreign.items() if key not in {*defaults, *only, *KEYS[name]}}
    file = {"_class_name": name, "_diffusers_version": "0.42", **foreign}
    assert read_scheduler(file, 10).without_effect == tuple(foreign), "keys of other schedulers"


@pytest.mark.parity
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_keys_above_are_all_that_diffusers_has(name):
    scheduler = getattr(pytest.importorskip("diffusers"), name)
    assert set(inspect.signature(scheduler.__init__).parameters) - {"self"} <= set(KEYS[name])


def test_solvers_of_few_steps_honour_solver_type_and_order_together():
    """Every algorithm, type and order that is read has weights of its own, except where diffusers' agree too."""
    seen = {}
    for kind in ("dpmsolver++", "sde-dpmsolver++"):
        for order in (1, 2) if kind.startswith("sde") else (1, 2, 3):
            for solver in ("midpoint", "heun"):
                config = {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": kind, "solver_order": order}
                seen[kind, order, solver] = key_signature({**config, "solver_type": solver}, 20)
    for kind, order, solver in seen:
        assert (seen[kind, order, solver] == seen[kind, order, "heun"]) == (order == 1 or solver == "heun")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_m_steps_are_m_evaluations_wherever_the_last_has_length_or_corrects(name):
    """A step from the chain's first noise level to itself is none; UniPC corrects the one before it there."""
    spacings = ("leading", "trailing", "linspace") if "timestep_spacing" in SCHEDULERS[name][2] else (None,)
    ends = ("zero", "sigma_min") if "final_sigmas_type" in SCHEDULERS[name][2] else (None,)
    karras = (False, True) if True in SCHEDULERS[name][2].get("use_karras_sigmas", ()) else (False,)
    checked = 0
    for spacing, end, on_karras in itertools.product(spacings, ends, karras):
        config = {"_class_name": name, "timestep_spacing": spacing, "final_sigmas_type": end, "use_karras_sigmas": True}
        config = {key: value for key, value in config.items() if value is not None}
        if not on_karras:
            del config["use_karras_sigmas"]
        for steps in (2, 10, 33):
            s = read_scheduler(config, steps)
            at_first = name.startswith("EDM") or abs(s.ts[-1] * 1000 - 1) < 1e-5
            # PNDM's first three steps are of four evaluations each.
            points = len(s.ts) - 3 * min(3, steps - 1) * (name == "PNDMScheduler")
            corrects = getattr(s.stepper, "corrects", False)
            no_length = not s.final_denoise and at_first and not corrects and points == steps
            assert points - 1 + s.final_denoise == steps - no_length, config
            assert np.all(np.diff(s.ts.astype(np.float32)) < 0), config
            checked += 1
    assert checked >= 3


def test_dpm_solver_lowers_the_order_of_few_steps_alone():
    config = {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}
    for steps, expected in ((14, LoweredAtTheEnd), (15, DPMpp3MPublished)):
        assert type(read_scheduler(config, steps).stepper) is expected
        assert type(read_scheduler({**config, "lower_order_final": False}, steps).stepper) is DPMpp3MPublished


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"])
def test_the_files_quantile_and_largest_value_are_the_thresholds(name):
    """Other than the defaults, each in its turn: |x0_hat| evenly from 0 to 5, so that a quantile q is 5 q."""
    x0 = jnp.linspace(-5.0, 5.0, 2001).reshape(1, -1, 1)
    for ratio, largest, bound in ((0.5, 10.0, 2.5), (0.8, 10.0, 4.0), (0.8, 3.0, 3.0), (0.1, 10.0, 1.0)):
        thresholds = {"thresholding": True, "dynamic_thresholding_ratio": ratio, "sample_max_value": largest}
        (transform,) = read_scheduler({"_class_name": name, **thresholds}).denoiser_transforms
        found = transform(lambda xt, t: x0)(x0, jnp.asarray(0.5))
        np.testing.assert_allclose(found, np.clip(x0, -bound, bound) / bound, atol=1e-5)


def test_the_network_is_told_whole_steps_in_float32():
    with jax.enable_x64(False):
        for k in (1000, 30):
            sampling = read_scheduler({"_class_name": "DDIMScheduler", "num_train_timesteps": k}, k)
            told = sampling.parameterisation.noise_level(sampling.process, jnp.asarray(sampling.ts, jnp.float32))
            np.testing.assert_array_equal(told, np.arange(k)[::-1])
        assert jax.grad(lambda t: sampling.parameterisation.noise_level(sampling.process, t))(0.5) == 30


@pytest.mark.parametrize(
    ("config", "steps", "message"),
    [
        ({"_class_name": "KDPM2DiscreteScheduler"}, 10, "where: _class_name is 'KDPM2DiscreteScheduler'; diffjax has"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "laplace"}, 10, "where: beta_schedule is 'laplace'"),
        (
            {"_class_name": "DDIMScheduler", "thresholding": True, "dynamic_thresholding_ratio": 1.5},
            10,
            r"where: dynamic_thresholding_ratio is 1.5; a number in \(0, 1\] is needed",
        ),
        ({"_class_name": "DDIMScheduler", "unheard_of": 1}, 10, "where: unknown key unheard_of"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, 10, "where: variance_type is"),
        ({"_class_name": "DDIMScheduler"}, 1001, "steps: where has 1000, got 1001"),
        ({"_class_name": "DDIMScheduler"}, 1, "steps: at least 2 are needed, got 1"),
        ({"_class_name": "DDIMScheduler", "beta_end": 2.0}, 10, "where: beta_start, beta_end"),
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.1]}, 10, "where: trained_betas has shape"),
        ({"_class_name": "DDIMScheduler", "steps_offset": 1}, 1000, "where: with steps_offset 1, 1000 steps begin"),
        (
            {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            10,
            "where: rescale_betas_zero_snr leaves no signal",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_order": 3},
            10,
            "where: algorithm_type 'sde-dpmsolver\\+\\+' with solver_order 3 is not",
        ),
        ({"_class_name": ["x"]}, 10, r"where: _class_name is \['x'\]"),
        ({"_class_name": "DDIMScheduler", "beta_start": "0.1"}, 10, "where: beta_start is '0.1'; a number above 0"),
        (
            {"_class_name": "DDIMScheduler", "num_train_timesteps": None},
            10,
            "where: num_train_timesteps is None; an int",
        ),
        ({"_class_name": "UniPCMultistepScheduler", "lower_order_final": 1}, 10, "where: lower_order_final is 1; true"),
        ({"_class_name": "ScoreSdeVeScheduler", "correct_steps": 2}, 10, "where: correct_steps is 2; diffjax has 1, 0"),
        ({"_class_name": "ScoreSdeVeScheduler", "sampling_eps": 1e-3}, 10, "where: sampling_eps is 0.001"),
        ({"_class_name": "DDIMScheduler", "clip_sample_range": None}, 10, "where: clip_sample_range is None"),
        ({"_class_name": "DDIMScheduler", "clip_sample": "false"}, 10, "where: clip_sample is 'false'; true or false"),
        (
            {"_class_name": "DDIMScheduler", "steps_offset": -5},
            10,
            "where: steps_offset is -5; an integer of at least 0",
        ),
        ({"_class_name": "DDIMScheduler", "trained_betas": ["a"]}, 10, r"where: trained_betas is \['a'\]; a list"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0}, 10, "where: shift is 0; a number above 0"),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": 0}, 10, "where: sigma_min is 0; a number above 0"),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": 90}, 10, "^where: sigma_max: must be finite and more"),
    ],
)
def test_what_we_lack_is_named(config, steps, message):
    with pytest.raises(ValueError, match=message):
        read_scheduler(config, steps, where="where")
