"""Gaussian data, x0 ~ N(m, S): everything in closed form.

With S = U diag(w) U' and v = alpha^2 w + sigma^2, in the eigenbasis U:

    p_t = N(alpha m, U diag(v) U'),   score = -U diag(1/v) U' (xt - alpha m)
    E[x0 | xt] = m + U diag(alpha w/v) U' (xt - alpha m)
    flow map:   xs = alpha_s m + U diag(sqrt(v_s/v_t)) U' (xt - alpha_t m)
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import check, sample_keys
from diffjax._typing import Key, Sample, Time
from diffjax.analytic._base import AbstractDistribution
from diffjax.process import AbstractGaussianProcess


class Gaussian(AbstractDistribution):
    """N(mean, covariance) as data.

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

    def __init__(self, mean: Float[Array, "*d"], covariance: Float[Array, "..."] | float):
        mean, covariance = jnp.asarray(mean), jnp.asarray(covariance)
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
        self.mean, self.variances, self.basis = mean, variances.astype(mean.dtype), basis

    def sample(self, key: Key, n: int) -> Float[Array, "b *d"]:
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


def flow_map(gaussian: Gaussian, process: AbstractGaussianProcess, xt: Sample, t: Time, s: Time) -> Sample:
    """The probability flow from xt [b, *d] at time t to time s, exactly, [b, *d]; t and s of shape [] or [b].

    Source: math above; Song et al. 2021, eq. 13, solved for a Gaussian.
    """
    growth = jnp.sqrt(_marginal_variances(gaussian, process, s) / _marginal_variances(gaussian, process, t))
    moved = _from_basis(gaussian, growth * _residual(gaussian, process, xt, t))
    return _scaled_mean(gaussian, process, s) + moved


def _column(c):
    """A coefficient of shape [] or [b] beside features in the eigenbasis: [] or [b, 1]."""
    return c if jnp.ndim(c) == 0 else jnp.asarray(c)[:, None]


def _marginal_variances(gaussian, process, t):
    return _column(process.alpha(t)) ** 2 * gaussian.variances + _column(process.sigma(t)) ** 2


def _scaled_mean(gaussian, process, t):
    alpha = jnp.asarray(process.alpha(t))
    return jnp.reshape(alpha, (-1, *(1,) * gaussian.mean.ndim)) * gaussian.mean


def _residual(gaussian, process, xt, t):
    """xt - alpha m in the eigenbasis, [b, D]."""
    z = (xt - _scaled_mean(gaussian, process, t)).reshape(xt.shape[0], -1)
    return z if gaussian.basis is None else z @ gaussian.basis


def _from_basis(gaussian, z):
    """From the eigenbasis [b, D] back to samples [b, *d]."""
    z = z if gaussian.basis is None else z @ gaussian.basis.T
    return z.reshape(z.shape[0], *gaussian.mean.shape)
