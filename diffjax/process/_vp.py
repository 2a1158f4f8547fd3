"""Variance-preserving processes, alpha^2 + sigma^2 = 1, and sub-VP, which has VP's mean and less noise on the way.

    B(t) = beta_min t + (beta_max - beta_min) t^2/2

VariancePreserving   alpha = exp(-B/2),  sigma = sqrt(-expm1(-B)),  lambda = -B - log(-expm1(-B))
    dx = -beta x/2 dt + sqrt(beta) dw                                      Song et al. 2021, eq. 32; DDPM's limit
SubVP                alpha = exp(-B/2),  sigma = -expm1(-B),  sigma/alpha = 2 sinh(B/2)
    dx = -beta x/2 dt + sqrt(beta (1 - exp(-2 B))) dw                      Song et al. 2021, eqs. 28 and 29
OrnsteinUhlenbeck    alpha = exp(-H t): VP with the constant beta 2 H, Langevin diffusion for a standard normal
    dx = -H x dt + sqrt(2 H) dw                                            Uhlenbeck & Ornstein 1930
Cosine               lambda = -2 log tan(pi t/2) + shift                   Hoogeboom et al. 2023, eq. 3
OffsetCosine         alpha = cos(u)/cos(u0),  u = (pi/2) (t + offset)/(1 + offset),  u0 = u(0)
    sigma^2 = sin(u - u0) sin(u + u0)/cos(u0)^2                            Nichol & Dhariwal 2021, eq. 17

`Cosine`'s shift moves logsnr, `OffsetCosine`'s offset moves time; with both at 0 they are the same process.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax._arrays import check, values_at_once
from diffjax._numbers import as_scalar
from diffjax._typing import Scalar, Time
from diffjax.process._gaussian import AbstractGaussianProcess, on_circle, root_from_zero


class AbstractLinearBeta(eqx.Module):
    """A process whose beta is linear in t: beta_min at t = 0, beta_max at t = 1, per unit of time."""

    beta_min: eqx.AbstractVar[Scalar]
    beta_max: eqx.AbstractVar[Scalar]

    def beta(self, t: Time) -> Time:
        """beta(t), of the shape of t."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def integrated_beta(self, t: Time, s: Time = 0.0) -> Time:
        """The integral of beta from s to t, of the shape of t."""
        return (t - s) * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * (t + s))

    def time_from_integrated_beta(self, b: Time) -> Time:
        """The t with integrated_beta(t) = b, of the shape of b."""
        low, slope = self.beta_min, self.beta_max - self.beta_min
        return 2 * b / (low + jnp.sqrt(low**2 + 2 * slope * b))


class VariancePreserving(AbstractLinearBeta, AbstractGaussianProcess):
    """The VP process with linear beta, dx = -beta(t) x/2 dt + sqrt(beta(t)) dw: DDPM's limit.

    >>> import diffjax as dj
    >>> process = dj.VariancePreserving()
    >>> print(process.alpha(0.5).round(4), process.sigma(0.5).round(4))
    0.2812 0.9597

    Attributes:
      beta_min: beta at t = 0, per unit of time; positive.
      beta_max: beta at t = 1; at least beta_min.

    Raises:
      ValueError: the numbers are not in that order.

    Source: Song et al. 2021 (Score-based generative modeling through SDEs), eq. 32.
    """

    beta_min: Scalar = eqx.field(converter=partial(as_scalar, "beta_min"), default=0.1)
    beta_max: Scalar = eqx.field(converter=partial(as_scalar, "beta_max"), default=20.0)

    @values_at_once
    def __check_init__(self):
        check_betas(self.beta_min, self.beta_max)

    def alpha(self, t: Time) -> Time:
        return jnp.exp(-0.5 * self.integrated_beta(t))

    def sigma(self, t: Time) -> Time:
        return root_from_zero(-jnp.expm1(-self.integrated_beta(t)), t)

    def logsnr(self, t: Time) -> Time:
        b = self.integrated_beta(t)
        return -b - jnp.log(-jnp.expm1(-b))

    def time_from_logsnr(self, value: Time) -> Time:
        return self.time_from_integrated_beta(jax.nn.softplus(-jnp.asarray(value)))

    def conditional(self, t: Time, s: Time) -> tuple[Time, Time]:
        gap = self.integrated_beta(t, s)
        return jnp.exp(-0.5 * gap), jnp.sqrt(-jnp.expm1(-gap))

    def scales(self, alpha: Time, sigma: Time) -> tuple[Time, Time]:
        return on_circle(alpha, sigma)


class SubVP(AbstractLinearBeta, AbstractGaussianProcess):
    """The sub-VP process with linear beta; alpha^2 + sigma^2 is less than 1 between the ends.

    Attributes:
      beta_min: beta at t = 0, per unit of time; positive.
      beta_max: beta at t = 1; at least beta_min.

    Raises:
      ValueError: the numbers are not in that order.

    Source: Song et al. 2021, eq. 28.
    """

    beta_min: Scalar = eqx.field(converter=partial(as_scalar, "beta_min"), default=0.1)
    beta_max: Scalar = eqx.field(converter=partial(as_scalar, "beta_max"), default=20.0)

    @values_at_once
    def __check_init__(self):
        check_betas(self.beta_min, self.beta_max)

    def alpha(self, t: Time) -> Time:
        return jnp.exp(-0.5 * self.integrated_beta(t))

    def sigma(self, t: Time) -> Time:
        return -jnp.expm1(-self.integrated_beta(t))

    def logsnr(self, t: Time) -> Time:
        b = self.integrated_beta(t)
        return -b - 2 * jnp.log(-jnp.expm1(-b))

    def time_from_logsnr(self, value: Time) -> Time:
        return self.time_from_integrated_beta(2 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * value)))

    def conditional(self, t: Time, s: Time) -> tuple[Time, Time]:
        gap = self.integrated_beta(t, s)
        both = self.integrated_beta(t) + self.integrated_beta(s)
        return jnp.exp(-0.5 * gap), jnp.sqrt(jnp.expm1(-gap) * jnp.expm1(-both))

    def scales(self, alpha: Time, sigma: Time) -> tuple[Time, Time]:
        # With u = sigma/(2 alpha) the path has exp(-asinh u) = 1/(u + sqrt(1 + u^2)), and 2 u times it.
        total = 0.5 * sigma + jnp.sqrt(alpha**2 + 0.25 * sigma**2)
        return alpha / total, sigma / total


class OrnsteinUhlenbeck(AbstractGaussianProcess):
    """The Ornstein-Uhlenbeck process, run for the time `horizon`.

    Attributes:
      horizon: H, how long dx = -x dt + sqrt(2) dw runs; positive. 5 leaves alpha = exp(-5) = 0.007 of the data, as
        `VariancePreserving`'s defaults do.

    Raises:
      ValueError: the horizon is not positive and finite.

    Source: Uhlenbeck & Ornstein 1930; as a forward process, Chen et al. 2023 (Sampling is as easy as learning the
    score), section 2.
    """

    horizon: Scalar = eqx.field(converter=partial(as_scalar, "horizon"), default=5.0)

    @values_at_once
    def __check_init__(self):
        check(
            (self.horizon > 0) & (self.horizon < jnp.inf),
            f"horizon: must be positive and finite, got {self.horizon}",
        )

    def alpha(self, t: Time) -> Time:
        return jnp.exp(-self.horizon * t)

    def sigma(self, t: Time) -> Time:
        return root_from_zero(-jnp.expm1(-2 * self.horizon * t), t)

    def logsnr(self, t: Time) -> Time:
        b = 2 * self.horizon * t
        return -b - jnp.log(-jnp.expm1(-b))

    def time_from_logsnr(self, value: Time) -> Time:
        return jax.nn.softplus(-jnp.asarray(value)) / (2 * self.horizon)

    def conditional(self, t: Time, s: Time) -> tuple[Time, Time]:
        gap = self.horizon * (t - s)
        return jnp.exp(-gap), jnp.sqrt(-jnp.expm1(-2 * gap))

    def scales(self, alpha: Time, sigma: Time) -> tuple[Time, Time]:
        return on_circle(alpha, sigma)


class Cosine(AbstractGaussianProcess):
    """The cosine process, lambda = -2 log tan(pi t/2) + shift; its beta is singular at t = 1.

    With shift 0, alpha = cos(pi t/2) and sigma = sin(pi t/2). For images of side d trained well at side d0, Hoogeboom
    et al. take shift = 2 log(d0/d).

    >>> import diffjax as dj
    >>> process = dj.Cosine()
    >>> print(process.alpha(0.5).round(4), process.sigma(0.5).round(4), process.logsnr(0.5).round(4))
    0.7071 0.7071 0.0

    Attributes:
      shift: added to the log signal-to-noise ratio, nats; finite.

    Raises:
      ValueError: the shift is not finite.

    Source: Hoogeboom et al. 2023 (simple diffusion), eq. 3.
    """

    shift: Scalar = eqx.field(converter=partial(as_scalar, "shift"), default=0.0)

    @values_at_once
    def __check_init__(self):
        check(jnp.isfinite(self.shift), f"shift: must be finite, got {self.shift}")

    def alpha(self, t: Time) -> Time:
        signal, noise = self._sides(t)
        return signal / jnp.sqrt(signal**2 + noise**2)

    def sigma(self, t: Time) -> Time:
        signal, noise = self._sides(t)
        return noise / jnp.sqrt(signal**2 + noise**2)

    def logsnr(self, t: Time) -> Time:
        signal, noise = self._sides(t)
        return 2 * (jnp.log(signal) - jnp.log(noise))

    def time_from_logsnr(self, value: Time) -> Time:
        return jnp.arctan(jnp.exp(0.5 * (self.shift - value))) * (2 / jnp.pi)

    def conditional(self, t: Time, s: Time) -> tuple[Time, Time]:
        (signal_t, noise_t), (signal_s, noise_s) = self._sides(t), self._sides(s)
        size_t, size_s = jnp.sqrt(signal_t**2 + noise_t**2), jnp.sqrt(signal_s**2 + noise_s**2)
        # sin^2 t cos^2 s - cos^2 t sin^2 s; near t + s = 2, of 2 less the sum, which float32 holds exactly.
        total = jnp.where(t + s < 1, t + s, (1 - t) + (1 - s))  # `minimum` can lose its derivative in jit
        square = jnp.sin(0.5 * jnp.pi * (t - s)) * jnp.sin(0.5 * jnp.pi * total)
        cond_std = jnp.exp(-0.5 * self.shift) * jnp.sqrt(square) / (signal_s * size_t)
        return (signal_t / signal_s) * (size_s / size_t), cond_std

    def scales(self, alpha: Time, sigma: Time) -> tuple[Time, Time]:
        return on_circle(alpha, sigma)

    def _sides(self, t: Time) -> tuple[Time, Time]:
        """Two numbers, of the shape of t, whose ratio is alpha/sigma. The first is sin of 1 - t: cos is 0.5 % off near
        t = 1 in float32."""
        return jnp.sin(0.5 * jnp.pi * (1 - t)), jnp.exp(-0.5 * self.shift) * jnp.sin(0.5 * jnp.pi * t)


class OffsetCosine(AbstractGaussianProcess):
    """The cosine process of Improved DDPM; its beta is singular at t = 1.

    Attributes:
      offset: the paper's s, added to the time; not negative. It keeps the noise from growing too slowly near t = 0.

    Raises:
      ValueError: the offset is negative or not finite.

    Source: Nichol & Dhariwal 2021 (Improved denoising diffusion probabilistic models), eq. 17.
    """

    offset: Scalar = eqx.field(converter=partial(as_scalar, "offset"), default=0.008)

    @values_at_once
    def __check_init__(self):
        check((self.offset >= 0) & (self.offset < jnp.inf), f"offset: must be 0 or more and finite, got {self.offset}")

    def alpha(self, t: Time) -> Time:
        cos = self._cos(t)
        return cos / jnp.sqrt(cos**2 + self._difference_of_squares(t, jnp.zeros_like(t)))

    def sigma(self, t: Time) -> Time:
        square = self._difference_of_squares(t, jnp.zeros_like(t))
        linear = (square == 0) & (self.offset == 0)  # then sigma is linear in t near 0, not a root
        root = root_from_zero(jnp.where(linear, 1.0, square), t)
        root = jnp.where(linear, self._quarter() * (t - jax.lax.stop_gradient(t)), root)
        return root / jnp.sqrt(self._cos(t) ** 2 + square)

    def logsnr(self, t: Time) -> Time:
        return 2 * jnp.log(self._cos(t)) - jnp.log(self._difference_of_squares(t, jnp.zeros_like(t)))

    def time_from_logsnr(self, value: Time) -> Time:
        # tan(u - u0), from cos(u) = cos(u0) alpha and sin^2(u) = sigma^2 + sin^2(u0) alpha^2, without a difference.
        value = jnp.asarray(value)
        alpha, variance = jnp.sqrt(jax.nn.sigmoid(value)), jax.nn.sigmoid(-value)
        cos, sin = self._cos(jnp.zeros_like(value)), jnp.sin(self._quarter() * self.offset)
        sin_u = jnp.sqrt(variance + (sin * alpha) ** 2)
        angle = jnp.arctan2(variance * cos, (sin_u + sin * alpha) * (cos**2 * alpha + sin_u * sin))
        return angle / self._quarter()

    def conditional(self, t: Time, s: Time) -> tuple[Time, Time]:
        return self._cos(t) / self._cos(s), jnp.sqrt(self._difference_of_squares(t, s)) / self._cos(s)

    def scales(self, alpha: Time, sigma: Time) -> tuple[Time, Time]:
        return on_circle(alpha, sigma)

    def _quarter(self) -> Time:
        return 0.5 * jnp.pi / (1 + self.offset)

    def _cos(self, t: Time) -> Time:
        """cos(u), as the sine of pi/2 - u: cos is 0.5 % off near t = 1 in float32."""
        return jnp.sin(self._quarter() * (1 - t))

    def _difference_of_squares(self, t: Time, s: Time) -> Time:
        """sin(u_t - u_s) sin(u_t + u_s) = cos^2(u_s) - cos^2(u_t); near pi, of pi less the sum."""
        # By `where`: `minimum` compares a number with itself computed again, which jit may round otherwise, and then
        # has no derivative.
        total = jnp.where(t + s < 1, t + s + 2 * self.offset, (1 - t) + (1 - s))
        return jnp.sin(self._quarter() * (t - s)) * jnp.sin(self._quarter() * total)


def check_betas(beta_min: Scalar, beta_max: Scalar) -> None:
    """Refuses numbers that are not 0 < beta_min <= beta_max < inf."""
    check(beta_min > 0, f"beta_min: must be positive, got {beta_min}")
    check(
        (beta_max >= beta_min) & (beta_max < jnp.inf),
        f"beta_max: must be finite and at least beta_min = {beta_min}, got {beta_max}",
    )
