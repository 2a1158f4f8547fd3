"""Gaussian data, x0 ~ N(m, S): everything in closed form.

With S = U diag(w) U' and v = alpha^2 w + sigma^2, in the eigenbasis U:

    p_t = N(alpha m, U diag(v) U'),   score = -U diag(1/v) U' (xt - alpha m)
    E[x0 | xt] = m + U diag(alpha w/v) U' (xt - alpha m)
    flow:       xs = alpha_s m + U diag(sqrt(v_s/v_t)) U' (xt - alpha_t m)
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import as_numbers, check, check_finite, check_key, check_time, sample_keys, values_at_once
from diffjax._numbers import checked_numbers
from diffjax._typing import Key, Sample, Time
from diffjax.analytic._base import AbstractDistribution, of_features
from diffjax.process import AbstractGaussianProcess


class Gaussian(AbstractDistribution):
    """N(mean, covariance) as data.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> data = dj.Gaussian(jnp.zeros((8, 8, 1)), 0.25)
    >>> data.sample(jax.random.key(0), 3).shape
    (3, 8, 8, 1)

    Args:
      mean: [*d], its shape is one sample's.
      covariance: a variance [] shared by all features, variances in the mean's shape [*d], or a full matrix [D, D] over
        the flattened features.

    Raises:
      ValueError: the covariance has another shape, or is not symmetric and positive definite.
    """

    mean: Float[Array, "*d"]
    variances: Float[Array, " D"]
    basis: Float[Array, "D D"] | None

    @values_at_once
    def __init__(self, mean: Float[Array, "*d"], covariance: Float[Array, "..."] | float):
        mean, covariance = as_numbers("mean", mean), as_numbers("covariance", covariance, finite=False)
        size = mean.size
        if covariance.ndim == 0 or covariance.shape == mean.shape:
            variances, basis = jnp.broadcast_to(covariance, mean.shape).reshape(size), None
        elif covariance.shape == (size, size):
            check_symmetric(covariance, "covariance")
            variances, basis = jnp.linalg.eigh(covariance)
        else:
            raise ValueError(
                f"covariance: shape (), {mean.shape} or {(size, size)} is needed for a mean of shape {mean.shape}, "
                f"got {covariance.shape}"
            )
        check(variances > 0, f"covariance: must be positive definite, got eigenvalues {variances}")
        check_finite("covariance", covariance)
        self.mean, self.variances, self.basis = mean, variances.astype(mean.dtype), basis

    @checked_numbers
    def sample(self, key: Key, n: int) -> Float[Array, "b *d"]:
        check_key(key)
        keys = sample_keys(key, jnp.arange(n))
        z = jax.vmap(lambda k: jax.random.normal(k, (self.mean.size,), self.mean.dtype))(keys)
        return self.mean + _from_basis(self, jnp.sqrt(self.variances) * z)

    def log_prob(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> Float[Array, " b"]:
        z, v = _residual(self, process, xt, t), _marginal_variances(self, process, t)
        return -0.5 * jnp.sum(z**2 / v + jnp.log(2 * jnp.pi * v), axis=-1)

    def score(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> Sample:
        return -_from_basis(self, _residual(self, process, xt, t) / _marginal_variances(self, process, t))

    def denoise(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> Sample:
        gain = _column(process.alpha(t)) * self.variances / _marginal_variances(self, process, t)
        return self.mean + _from_basis(self, gain * _residual(self, process, xt, t))


def check_symmetric(matrices: Float[Array, "*k D D"], name: str) -> None:
    """Raises `ValueError` naming the argument where a concrete matrix, or one of a stack of them, is not symmetric."""
    scale = jnp.max(jnp.abs(matrices), axis=(-2, -1), keepdims=True)
    asymmetry = jnp.abs(matrices - jnp.swapaxes(matrices, -2, -1))
    check(~(asymmetry > 1e-5 * scale), f"{name}: must be symmetric, got {matrices}")


def gaussian_flow(gaussian: Gaussian, process: AbstractGaussianProcess, xt: Sample, t: Time, s: Time) -> Sample:
    """The probability flow from xt [b, *d] at time t to time s, exactly, [b, *d]; t and s of shape [] or [b]."""
    growth = jnp.sqrt(_marginal_variances(gaussian, process, s) / _marginal_variances(gaussian, process, t))
    moved = _from_basis(gaussian, growth * _residual(gaussian, process, xt, t))
    return _scaled_mean(gaussian, process, s) + moved


def gaussian_average(gaussian: Gaussian, process: AbstractGaussianProcess, xt: Sample, t: Time, s: Time) -> Sample:
    """The average denoiser A(xt, t, s), [b, *d], without cancellation at s = t; t and s of shape [] or [b]."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        (_column(process.alpha(time)), _column(process.sigma(time))) for time in (t, s)
    )
    std_t, std_s = (jnp.sqrt(_marginal_variances(gaussian, process, time)) for time in (t, s))
    below = std_t * (std_s * sigma_t + std_t * sigma_s)
    data = below == 0  # s = t = 0 without noise: x0 itself
    gain = gaussian.variances * (alpha_s * sigma_t + alpha_t * sigma_s) / jnp.where(data, 1.0, below)
    gain = jnp.where(data, 1 / jnp.where(data, alpha_t, 1.0), gain)
    return gaussian.mean + _from_basis(gaussian, gain * _residual(gaussian, process, xt, t))


def _column(c):
    """A coefficient of shape [] or [b] with features in the eigenbasis: [] or [b, 1]."""
    return c if jnp.ndim(c) == 0 else jnp.asarray(c)[:, None]


def _marginal_variances(gaussian, process, t):
    return _column(process.alpha(t)) ** 2 * gaussian.variances + _column(process.sigma(t)) ** 2


def _scaled_mean(gaussian, process, t):
    alpha = jnp.asarray(process.alpha(t))
    return jnp.reshape(alpha, (-1, *(1,) * gaussian.mean.ndim)) * gaussian.mean


def _residual(gaussian, process, xt, t):
    """xt - alpha m in the eigenbasis, [b, D]."""
    xt = of_features("xt", xt, gaussian.mean.shape)
    check_time(t, xt)
    z = (xt - _scaled_mean(gaussian, process, t)).reshape(xt.shape[0], -1)
    return z if gaussian.basis is None else z @ gaussian.basis


def _from_basis(gaussian, z):
    """From the eigenbasis [b, D] back to samples [b, *d]."""
    z = z if gaussian.basis is None else z @ gaussian.basis.T
    return z.reshape(z.shape[0], *gaussian.mean.shape)
