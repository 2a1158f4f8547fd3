"""Variance-preserving processes, alpha^2 + sigma^2 = 1.

linear beta (Song et al. 2021, eq. 32; the limit of DDPM)     alpha = exp(-B/2),  sigma = sqrt(-expm1(-B)),
    B(t) = beta_min t + (beta_max - beta_min) t^2/2,          lambda = -B - log(-expm1(-B))
cosine, shifted (Nichol & Dhariwal 2021; Hoogeboom et al. 2023, eq. 3)
    lambda = -2 log tan(pi t/2) + shift
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax._arrays import as_scalar, check
from diffjax._typing import Scalar, Time
from diffjax.process._base import AbstractGaussianProcess, conditional, logsnr, root_from_zero, time_from_logsnr
from diffjax.process._scales import on_circle, scales


class VariancePreserving(AbstractGaussianProcess):
    """The VP process with linear beta, dx = -beta(t) x/2 dt + sqrt(beta(t)) dw: DDPM's limit.

    Attributes:
      beta_min: beta at t = 0, per unit of time; positive.
      beta_max: beta at t = 1; at least beta_min.

    Raises:
      ValueError: the numbers are not in that order.

    Source: Song et al. 2021 (Score-based generative modeling through SDEs), eq. 32.
    """

    beta_min: Scalar = eqx.field(converter=as_scalar, default=0.1)
    beta_max: Scalar = eqx.field(converter=as_scalar, default=20.0)

    def __check_init__(self):
        check_betas(self.beta_min, self.beta_max)

    def alpha(self, t: Time) -> Time:
        return jnp.exp(-0.5 * integrated_beta(self, t))

    def sigma(self, t: Time) -> Time:
        return root_from_zero(-jnp.expm1(-integrated_beta(self, t)), t)


def check_betas(beta_min: Scalar, beta_max: Scalar) -> None:
    """Refuses numbers that are not 0 < beta_min <= beta_max < inf."""
    check(beta_min > 0, f"beta_min: must be positive, got {beta_min}")
    check(
        (beta_max >= beta_min) & (beta_max < jnp.inf),
        f"beta_max: must be finite and at least beta_min = {beta_min}, got {beta_max}",
    )


def integrated_beta(process: Any, t: Time, s: Time = 0.0) -> Time:
    """The integral of beta, linear in t, from s to t, for any process with `beta_min` and `beta_max`."""
    return (t - s) * (process.beta_min + 0.5 * (process.beta_max - process.beta_min) * (t + s))


def time_from_integrated_beta(process: Any, b: Time) -> Time:
    """The t with integrated_beta(process, t) = b."""
    low, slope = process.beta_min, process.beta_max - process.beta_min
    return 2 * b / (low + jnp.sqrt(low**2 + 2 * slope * b))


@logsnr.register(VariancePreserving)
def _(process: VariancePreserving, t: Time) -> Time:
    b = integrated_beta(process, t)
    return -b - jnp.log(-jnp.expm1(-b))


@time_from_logsnr.register(VariancePreserving)
def _(process: VariancePreserving, value: Time) -> Time:
    return time_from_integrated_beta(process, jax.nn.softplus(-jnp.asarray(value)))


@conditional.register(VariancePreserving)
def _(process: VariancePreserving, t: Time, s: Time) -> tuple[Time, Time]:
    gap = integrated_beta(process, t, s)
    return jnp.exp(-0.5 * gap), jnp.sqrt(-jnp.expm1(-gap))


scales.register(VariancePreserving, on_circle)


class Cosine(AbstractGaussianProcess):
    """The cosine process, lambda = -2 log tan(pi t/2) + shift; its beta is singular at t = 1.

    With shift 0, alpha = cos(pi t/2) and sigma = sin(pi t/2). For images of side d trained well at side d0, Hoogeboom
    et al. take shift = 2 log(d0/d).

    Attributes:
      shift: added to the log signal-to-noise ratio, nats; finite.

    Raises:
      ValueError: the shift is not finite.

    Source: Hoogeboom et al. 2023 (simple diffusion), eq. 3.
    """

    shift: Scalar = eqx.field(converter=as_scalar, default=0.0)

    def __check_init__(self):
        check(jnp.isfinite(self.shift), f"shift: must be finite, got {self.shift}")

    def alpha(self, t: Time) -> Time:
        data, noise = _legs(self, t)
        return data / jnp.sqrt(data**2 + noise**2)

    def sigma(self, t: Time) -> Time:
        data, noise = _legs(self, t)
        return noise / jnp.sqrt(data**2 + noise**2)


def _legs(process: Cosine, t: Time) -> tuple[Time, Time]:
    """Two lengths whose ratio is alpha/sigma. The first is sin of 1 - t: cos loses 0.5 % near t = 1 in float32."""
    return jnp.sin(0.5 * jnp.pi * (1 - t)), jnp.exp(-0.5 * process.shift) * jnp.sin(0.5 * jnp.pi * t)


@logsnr.register(Cosine)
def _(process: Cosine, t: Time) -> Time:
    data, noise = _legs(process, t)
    return 2 * (jnp.log(data) - jnp.log(noise))


@time_from_logsnr.register(Cosine)
def _(process: Cosine, value: Time) -> Time:
    return jnp.arctan(jnp.exp(0.5 * (process.shift - value))) * (2 / jnp.pi)


@conditional.register(Cosine)
def _(process: Cosine, t: Time, s: Time) -> tuple[Time, Time]:
    (data_t, noise_t), (data_s, noise_s) = _legs(process, t), _legs(process, s)
    size_t, size_s = jnp.sqrt(data_t**2 + noise_t**2), jnp.sqrt(data_s**2 + noise_s**2)
    # sin^2 t cos^2 s - cos^2 t sin^2 s; near t + s = 2, of what is left of it, which float32 holds exactly.
    total = jnp.where(t + s < 1, t + s, (1 - t) + (1 - s))  # `minimum` can lose its derivative in jit
    lean = jnp.sin(0.5 * jnp.pi * (t - s)) * jnp.sin(0.5 * jnp.pi * total)
    return (data_t / data_s) * (size_s / size_t), jnp.exp(-0.5 * process.shift) * jnp.sqrt(lean) / (data_s * size_t)


scales.register(Cosine, on_circle)
