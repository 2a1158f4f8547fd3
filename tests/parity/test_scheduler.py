"""Schedulers: the file's own steps are told to the network, and ten of them end where diffusers' do."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_scheduler as torch_side
from tools import load_fixture

from diffjax import make_denoiser, sample
from diffjax._typing import Network
from diffjax.interop import read_scheduler
from diffjax.interop._lowered import LoweredAtTheEnd
from diffjax.samplers import DPMpp3MPublished, _ddim, _multistep

CONFIGS = {name: config for cases in torch_side.CASES.values() for name, config in cases.items()}
NAMES = list(CONFIGS)
# Where diffusers is not quite ours: it rounds the steps of Karras's grid, interpolates sigmas of fractional steps
# otherwise, and takes 2^-12 for no signal.
ERROR = {"dpm-zero-snr": 1e-3, "dpm-karras": 1e-3}
TOLD = {"dpm-karras": 0.5, "euler-karras": 0.02}
OFTEN = ("ddim-clipped", "ddim-trailing", "dpm", "edm", "flow-shifted", "unipc-third-lowered")


def apply(params, x, c_noise, cond=None, *, key=None):
    return torch_side.network(jnp, x, c_noise[:, None, None, None])


NETWORK = Network(lambda key, x, c_noise, cond=None: {}, apply)


def ours(config, start):
    """(what the network is told [n], what ten steps end in)."""
    sampling = read_scheduler({key: value for key, value in config.items() if key != "step"}, torch_side.STEPS)
    told = sampling.parameterisation.noise_level(sampling.process, jnp.asarray(sampling.ts))
    if start is None:
        return told, None
    denoiser = make_denoiser({}, network=NETWORK, process=sampling.process, parameterisation=sampling.parameterisation)
    for transform in sampling.denoiser_transforms:
        denoiser = transform(denoiser)
    key, xt = jax.random.key(0), jnp.asarray(start)
    with pytest.MonkeyPatch.context() as patch:
        for module in (_ddim, _multistep):
            patch.setattr(module, "normal_like", lambda keys, x: jnp.asarray(torch_side.FRESH, x.dtype))
        end = sample(key, sampling.process, denoiser, xt, sampling.ts, sampling.stepper, denoise=sampling.denoise)
    return told, end


def compare(name, config, expected):
    told, end = ours(config, expected.get("start"))
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
