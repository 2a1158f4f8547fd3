"""Noise schedules that are learned: variance-preserving processes given by their logsnr, whose numbers are leaves.

linear       lambda(t) = (1 - t) logsnr_max + t logsnr_min
monotone     lambda(t) = (1 - u) logsnr_max + u logsnr_min,   u(t) = (n(t) - n(0))/(n(1) - n(0))
             n(t) = w1 t + sum_j w3_j sigmoid(w2_j w1 t + b_j),   every w positive
alpha = sqrt(sigmoid(lambda)),  sigma = sqrt(sigmoid(-lambda))

Differences of lambda have a form of their own, so that kernels over a small gap lose no digits. The continuous ELBO
depends on the end points of the schedule alone; the shape between them changes the variance of its estimate.
Source: Kingma et al. 2021 (Variational Diffusion Models), section 3.2 and appendix H, with lambda = -gamma.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from diffjax._arrays import at_once, check, check_key, values_at_once
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import Key, Scalar, Time
from diffjax.process._gaussian import AbstractGaussianProcess, on_circle, scales_from_logsnr


class LearnedLogsnr(AbstractGaussianProcess):
    """A learned logsnr: a line in t between two learned end points.

    Attributes:
      logsnr_max: at t = 0. 13.3 is a noise of 0.0013, a sixth of the step between two of 256 levels in [-1, 1].
      logsnr_min: at t = 1; less.

    Raises:
      ValueError: the end points are not finite or out of order. They are not checked during training: use a small
        learning rate for them.

    Source: Kingma et al. 2021, appendix H, where gamma = -lambda runs from -13.3 to 5.
    """

    logsnr_max: Scalar = eqx.field(converter=partial(as_scalar, "logsnr_max"), default=13.3)
    logsnr_min: Scalar = eqx.field(converter=partial(as_scalar, "logsnr_min"), default=-5.0)

    @values_at_once
    def __check_init__(self):
        check_ends(self.logsnr_max, self.logsnr_min)

    def alpha(self, t: Time) -> Time:
        return scales_from_logsnr(self, self.logsnr(t))[0]

    def sigma(self, t: Time) -> Time:
        return scales_from_logsnr(self, self.logsnr(t))[1]

    def logsnr(self, t: Time) -> Time:
        return _between(self, t)

    def time_from_logsnr(self, value: Time) -> Time:
        return (self.logsnr_max - value) / (self.logsnr_max - self.logsnr_min)

    def conditional(self, t: Time, s: Time) -> tuple[Time, Time]:
        return _step(self, t, s, t - s)

    def scales(self, alpha: Time, sigma: Time) -> tuple[Time, Time]:
        return on_circle(alpha, sigma)


@checked_numbers
class MonotoneLogsnr(AbstractGaussianProcess):
    """A logsnr that falls between two numbers by a monotone network; numbers and network train.

    Args:
      key: for the network's first weights, which begin near a straight line.
      logsnr_max, logsnr_min: at t = 0 and t = 1, exactly, whatever the network.
      width: of its hidden layer.

    The positive weights are the exponentials of the leaves `slope` [], `inner` [width] and `outer` [width]; `bias`
    is [width].

    Raises:
      ValueError: the end points are not finite or out of order.

    Source: Kingma et al. 2021, appendix H; the biases of l1 and l3 are absorbed or cancel.
    """

    logsnr_max: Scalar
    logsnr_min: Scalar
    slope: Float[Array, ""]
    inner: Float[Array, " width"]
    bias: Float[Array, " width"]
    outer: Float[Array, " width"]

    def __init__(self, key: Key, logsnr_max: ArrayLike = 13.3, logsnr_min: ArrayLike = -5.0, width: int = 1024):
        self.logsnr_max, self.logsnr_min = as_scalar("logsnr_max", logsnr_max), as_scalar("logsnr_min", logsnr_min)
        check_ends(self.logsnr_max, self.logsnr_min)
        check_key(key)
        with at_once(key):
            inner_key, place_key, outer_key = jax.random.split(key, 3)
            self.slope = jnp.zeros(())
            # Sigmoids a quarter of the clock wide, in random places of it, which sum to about a line.
            self.inner = jnp.log(16.0) + 0.1 * jax.random.normal(inner_key, (width,))
            self.bias = -16.0 * jax.random.uniform(place_key, (width,))
            self.outer = 0.5 * jax.random.normal(outer_key, (width,))

    def alpha(self, t: Time) -> Time:
        return scales_from_logsnr(self, self.logsnr(t))[0]

    def sigma(self, t: Time) -> Time:
        return scales_from_logsnr(self, self.logsnr(t))[1]

    def logsnr(self, t: Time) -> Time:
        t = jnp.asarray(t)
        passed, left = self._rise(t, jnp.zeros_like(t)), self._rise(jnp.ones_like(t), t)
        return _between(self, passed / (passed + left))  # exactly 0 and 1 at the ends

    def conditional(self, t: Time, s: Time) -> tuple[Time, Time]:
        t, s = jnp.asarray(t), jnp.asarray(s)
        return _step(self, t, s, self._rise(t, s) / self._rise(jnp.ones_like(t), jnp.zeros_like(t)))

    def scales(self, alpha: Time, sigma: Time) -> tuple[Time, Time]:
        return on_circle(alpha, sigma)

    def _rise(self, t: Float[Array, "..."], s: Float[Array, "..."]) -> Float[Array, "..."]:
        """n(t) - n(s) without cancellation: sigmoid(x) - sigmoid(y) = sigmoid(x) sigmoid(-y) (-expm1(y - x))."""
        slope, inner, outer = (jnp.exp(w).astype(t.dtype) for w in (self.slope, self.inner, self.outer))
        rate, bias = slope * inner, self.bias.astype(t.dtype)
        after, before = rate * t[..., None] + bias, rate * s[..., None] + bias
        hidden = jax.nn.sigmoid(after) * jax.nn.sigmoid(-before) * -jnp.expm1(-rate * (t - s)[..., None])
        return slope * (t - s) + jnp.mean(outer * hidden, axis=-1)


def check_ends(logsnr_max: Scalar, logsnr_min: Scalar) -> None:
    """Refuses end points that are not finite numbers in their order."""
    check(jnp.isfinite(logsnr_max), f"logsnr_max: must be finite, got {logsnr_max}")
    check(jnp.isfinite(logsnr_min), f"logsnr_min: must be finite, got {logsnr_min}")
    check(logsnr_min < logsnr_max, f"logsnr_min: must be less than logsnr_max = {logsnr_max}, got {logsnr_min}")


def _between(process: LearnedLogsnr | MonotoneLogsnr, part: Time) -> Time:
    return (1 - part) * process.logsnr_max + part * process.logsnr_min


def _step(process: LearnedLogsnr | MonotoneLogsnr, t: Time, s: Time, part: Time) -> tuple[Time, Time]:
    gap = part * (process.logsnr_max - process.logsnr_min)
    return process.alpha(t) / process.alpha(s), process.sigma(t) * jnp.sqrt(-jnp.expm1(-gap))
