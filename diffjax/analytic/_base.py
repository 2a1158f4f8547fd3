"""Distributions of data whose diffusion is known in closed form: the truth that everything else is measured against.

data distribution, process --> log p_t(x), score, E[x0 | xt] --> exact_denoiser: a Denoiser like any other
"""

import abc

import equinox as eqx
from jaxtyping import Array, Float

from diffjax._arrays import as_samples
from diffjax._typing import Key, Sample, Time
from diffjax.process import AbstractGaussianProcess


class AbstractDistribution(eqx.Module):
    """Data with known marginals under every Gaussian process: xt = alpha x0 + sigma eps, x0 ~ this distribution."""

    @abc.abstractmethod
    def sample(self, key: Key, n: int) -> Float[Array, "b *d"]:
        """n draws of x0, [n, *d]; draw i uses `fold_in(key, i)`."""

    @abc.abstractmethod
    def log_prob(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> Float[Array, " b"]:
        """log p_t(xt) in nats, [b], for xt [b, *d] and t [] or [b]; at t = 0, the data's own density."""

    @abc.abstractmethod
    def score(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> Sample:
        """grad log p_t(xt), [b, *d], for xt [b, *d] and t [] or [b]."""

    @abc.abstractmethod
    def denoise(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> Sample:
        """E[x0 | xt], [b, *d], for xt [b, *d] and t [] or [b]."""


def of_features(name: str, x: Sample, features: tuple[int, ...]) -> Sample:
    """Samples x [b, *d] as an array, checked to have the features [*d] of the data.

    Raises:
      ValueError: they have not, or are no batch of floating-point numbers.
    """
    x = as_samples(name, x)
    return as_samples(name, x, (x.shape[0], *features))


class ExactDenoiser(eqx.Module):
    """`D(xt [b, *d], t) = E[x0 | xt]` of a known distribution; made by `exact_denoiser`."""

    distribution: AbstractDistribution
    process: AbstractGaussianProcess

    def __call__(self, xt: Sample, t: Time) -> Sample:
        return self.distribution.denoise(self.process, xt, t)


def exact_denoiser(distribution: AbstractDistribution, process: AbstractGaussianProcess) -> ExactDenoiser:
    """The optimal denoiser of a known distribution under a process, for samplers and likelihood to be tested with.

    It maps xt [b, *d] and t [] or [b] to x0_hat [b, *d].

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(2), 1.0), dj.Rectified())
    >>> print(denoiser(jnp.ones((1, 2)), 0.5))  # alpha/(alpha^2 + sigma^2) xt
    [[1. 1.]]
    """
    return ExactDenoiser(distribution, process)
