"""The chain and the grid of a diffusers scheduler that counts steps 0 .. K - 1.

    betas --> DiscreteChain        step n of the file, 0 .. K - 1, is the time (n + 1)/K

    timestep_spacing   leading     n (K // m) + offset, n = m - 1 .. 0
                       linspace    m numbers evenly from K - 1 to 0
                       trailing    K - 1, and then K // m less each time (rounded)
                       EDM         sigma^(1/7) evenly between the sigmas of two of the steps

Source: Ho et al. 2020; Lin et al. 2023, table 2 (spacings); Karras et al. 2022, eq. 5.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from diffjax._arrays import on_host
from diffjax._typing import Denoiser
from diffjax.guidance import dynamic_threshold, static_threshold
from diffjax.interop._clipped import clipped_and_scaled
from diffjax.interop._clock import OnSteps
from diffjax.interop._pndm import CLOSE
from diffjax.parameterisation import AbstractParameterisation
from diffjax.parameterisation._linear import EpsPrediction, VPrediction, X0Prediction
from diffjax.process import (
    AbstractGaussianProcess,
    DiscreteChain,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
    zero_terminal_snr,
)
from diffjax.samplers import AbstractStepper
from diffjax.samplers._unipc import UniPC

Fields = Mapping[str, Any]
"""The values of a scheduler_config.json, missing ones filled by their defaults."""


class Sampling(NamedTuple):
    """What `sample` needs, from a scheduler's configuration.

    Attributes:
      process: the forward process.
      parameterisation: what the network predicts, and its c_noise: the file's own clock.
      ts: the grid, descending, shape [m] or [m + 1] for m evaluations; PNDM's has more, see `read_scheduler`.
      stepper: the scheduler's method, or the nearest to it.
      final_denoise: for `sample`: whether the last evaluation gives x0.
      denoiser_transforms: thresholds `(denoiser) -> denoiser`, to be applied in order.
      without_effect: the file's keys, in its order, that change nothing in the above; see `read_scheduler`.
    """

    process: AbstractGaussianProcess
    parameterisation: AbstractParameterisation
    ts: Float[np.ndarray, " points"]
    stepper: AbstractStepper
    final_denoise: bool
    denoiser_transforms: tuple[Callable[[Denoiser], Denoiser], ...]
    without_effect: tuple[str, ...] = ()


def on_chain(
    fields: Fields,
    n: int,
    where: str,
    stepper: AbstractStepper,
    *,
    to_zero: bool,
    between: bool = False,
    whole: bool = True,
) -> Sampling:
    """A `DiscreteChain`, and a grid of n of its steps.

    Args:
      fields: the configuration's values.
      n: evaluations of the network.
      where: the file, for messages.
      stepper: the method.
      to_zero: the last update is to no noise, else to the chain's first noise level.
      between: n steps of n + 1, of which the last (0, or the offset) is left out, as in diffusers' multistep methods.
      whole: steps are rounded.
    """
    betas = _betas(fields, where)
    k = len(betas)
    steps = _spaced(fields, k, n, between, whole)
    if steps[0] > k - 1:
        raise ValueError(f"{where}: with steps_offset {fields['steps_offset']}, {n} steps begin beyond the chain's {k}")
    if fields.get("rescale_betas_zero_snr"):
        betas = zero_terminal_snr(betas)
        if fields["prediction_type"] == "epsilon" and steps[0] == k - 1:
            raise ValueError(f"{where}: rescale_betas_zero_snr leaves no signal, and prediction_type is 'epsilon'")
    process = DiscreteChain(betas)
    ts = (steps + 1) / k
    if fields.get("use_karras_sigmas"):
        ts = _karras_times(betas, n, steps if not whole else np.array([k - 1, 0]))
    if not to_zero and ts[-1] > (1 + CLOSE) / k:
        ts = np.append(ts, 1 / k)
    elif not to_zero and isinstance(stepper, UniPC):
        ts = np.append(ts, (1 - CLOSE) / k)  # the last evaluation, at the chain's first level, corrects the step to it
    inner = {"epsilon": EpsPrediction, "sample": X0Prediction, "v_prediction": VPrediction}[fields["prediction_type"]]
    clock = OnSteps(inner=inner(), steps=k)
    return Sampling(process, clock, ts, stepper, to_zero, thresholds(fields, where))


def _betas(fields, where):
    k, start, stop = (fields[key] for key in ("num_train_timesteps", "beta_start", "beta_end"))
    if fields["trained_betas"] is not None:
        betas = np.asarray(fields["trained_betas"], np.float64)
        if betas.shape != (k,):
            raise ValueError(f"{where}: trained_betas has shape {betas.shape}, num_train_timesteps is {k}")
        return betas
    makers = {
        "linear": lambda: linear_betas(k, start, stop),
        "scaled_linear": lambda: scaled_linear_betas(k, start, stop),
        "squaredcos_cap_v2": lambda: cosine_betas(k),
        "sigmoid": lambda: start + (stop - start) / (1 + np.exp(-np.linspace(-6, 6, k))),
    }
    try:
        return makers[fields["beta_schedule"]]()
    except ValueError as error:
        raise ValueError(f"{where}: beta_start, beta_end, num_train_timesteps: {error}") from None


def _spaced(fields, k, n, between, whole):
    """The file's steps, [n], descending.

    between: n of n + 1, the last (0, or the offset) being left out, as multistep methods have it; where the chain has
    no n + 1, all that it has (diffusers then takes one twice, and its method divides by zero). whole: rounded.
    """
    spacing, m = fields["timestep_spacing"], min(n + between, k)
    if spacing == "linspace":
        steps = np.linspace(0, k - 1, m)
        steps = (np.round(steps) if whole else steps)[::-1]
    elif spacing == "leading":
        steps = np.arange(m)[::-1] * (k // m) + fields["steps_offset"]
    else:
        return np.round(np.arange(n) * -(k / n) + k) - 1
    return steps[:n].astype(np.float64)


def _karras_times(betas, n, ends):
    """Times where sigma/alpha is on EDM's grid (eq. 5, rho = 7) between two of the chain's steps."""
    alpha_bar = np.cumprod(1 - betas)
    sigmas = np.interp(np.array([ends[0], ends[-1]]), np.arange(len(betas)), np.sqrt((1 - alpha_bar) / alpha_bar))
    high, low = sigmas ** (1 / 7)
    with on_host():
        times = DiscreteChain(betas).time_from_logsnr(-14 * np.log(np.linspace(high, low, n)))
    return np.clip(np.asarray(times, np.float64), 1 / len(betas), 1.0)


def thresholds(fields: Fields, where: str) -> tuple[Callable[[Denoiser], Denoiser], ...]:
    """The thresholds of x0_hat that a configuration has, `(denoiser) -> denoiser`."""
    if fields.get("thresholding"):
        quantile, largest = fields["dynamic_thresholding_ratio"], fields["sample_max_value"]
        if quantile > 1:
            raise ValueError(f"{where}: dynamic_thresholding_ratio is {quantile}; a number in (0, 1] is needed")
        if largest < 1:  # then it is the threshold of every sample
            return (partial(clipped_and_scaled, limit=largest),)
        return (partial(dynamic_threshold, quantile=quantile, largest=largest),)
    if fields.get("clip_sample"):
        limit = fields["clip_sample_range"]
        return (partial(static_threshold, low=-limit, high=limit),)
    return ()
