"""Distributions of latents: Gaussians with independent components, their divergences and draws.

    q = N(m, diag s^2),   p = N(m_p, diag s_p^2)
    KL(q || p) = sum_j 1/2 (s^2/s_p^2 - 1 - log(s^2/s_p^2) + (m - m_p)^2/s_p^2)
    z = m + s eps,  eps ~ N(0, I) from the key of the sample's global index

A prior gives divergences by latent, [b, *d] and not their sum, so that free bits and diagnostics can group them.

Source: Kingma & Welling 2014, appendix B.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from diffjax._arrays import as_samples, check_finite, normal_like
from diffjax._numbers import checked_numbers
from diffjax._typing import Sample, Scalar

LOG_STD_RANGE = (-15.0, 10.0)
"""Log standard deviations of networks are clipped to it: log variances to [-30, 20], as `AutoencoderKL`'s."""

HALF_LOG_TAU = 0.5 * float(np.log(2 * np.pi))


class AbstractPrior(eqx.Module):
    """A distribution p(z) of latents z [b, *d], against which a Gaussian posterior is measured."""

    @abc.abstractmethod
    def divergence(self, posterior: "DiagonalGaussian") -> Float[Array, "b *d"]:
        """KL(q || p) by latent in nats, [b, *d]; their sum is the divergence."""

    @abc.abstractmethod
    def log_prob(self, z: Sample) -> Float[Array, "b *d"]:
        """log p(z) by latent in nats, [b, *d], for z [b, *d]; their sum is the log density."""

    @abc.abstractmethod
    def sample(
        self, keys: Shaped[Array, "b *k"], shape: tuple[int, ...], temperature: Scalar = 1.0
    ) -> Float[Array, "b *d"]:
        """A draw of shape [b, *d] from keys [b], with standard deviations multiplied by the temperature."""


class DiagonalGaussian(AbstractPrior):
    """N(mean, diag exp(2 log_std)): a posterior q(z | x), or a prior that a network gives.

    >>> import jax.numpy as jnp
    >>> q = DiagonalGaussian(jnp.array([[1.0, 0.0]]), jnp.zeros((1, 2)))
    >>> StandardNormal().divergence(q).tolist()
    [[0.5, 0.0]]

    Attributes:
      mean: [b, *d].
      log_std: log standard deviations, [b, *d].

    Raises:
      ValueError: the two have different shapes, or a log standard deviation is not finite (a singular scale).
    """

    mean: Float[Array, "b *d"]
    log_std: Float[Array, "b *d"]

    def __init__(self, mean: Sample, log_std: Sample):
        mean = as_samples("mean", mean)
        log_std = as_samples("log_std", log_std, mean.shape)
        check_finite("log_std", log_std)
        self.mean, self.log_std = mean, log_std

    def divergence(self, posterior: "DiagonalGaussian") -> Float[Array, "b *d"]:
        growth = posterior.log_std - self.log_std
        shift = (posterior.mean - self.mean) * jnp.exp(-self.log_std)
        # s^2/s_p^2 - 1 - log(s^2/s_p^2); by expm1, for 1 hides the digits of a ratio that is nearly 1.
        return 0.5 * (jnp.expm1(2 * growth) - 2 * growth + shift**2)

    def log_prob(self, z: Sample) -> Float[Array, "b *d"]:
        z = as_samples("z", z, self.mean.shape)
        return -0.5 * ((z - self.mean) * jnp.exp(-self.log_std)) ** 2 - self.log_std - HALF_LOG_TAU

    @checked_numbers
    def sample(
        self, keys: Shaped[Array, "b *k"], shape: tuple[int, ...] | None = None, temperature: Scalar = 1.0
    ) -> Float[Array, "b *d"]:
        """A reparameterised draw mean + temperature exp(log_std) eps, [b, *d], one key a sample; the shape is the
        mean's."""
        if shape not in (None, self.mean.shape):
            raise ValueError(f"shape: {self.mean.shape} is needed, that of the mean, got {shape}")
        return self.mean + temperature * jnp.exp(self.log_std) * normal_like(keys, self.mean)


class StandardNormal(AbstractPrior):
    """N(0, I), of latents of any shape."""

    def divergence(self, posterior: DiagonalGaussian) -> Float[Array, "b *d"]:
        growth = posterior.log_std
        return 0.5 * (jnp.expm1(2 * growth) - 2 * growth + posterior.mean**2)

    def log_prob(self, z: Sample) -> Float[Array, "b *d"]:
        z = as_samples("z", z)
        return -0.5 * z**2 - HALF_LOG_TAU

    @checked_numbers
    def sample(
        self, keys: Shaped[Array, "b *k"], shape: tuple[int, ...], temperature: Scalar = 1.0
    ) -> Float[Array, "b *d"]:
        return jnp.asarray(temperature * normal_like(keys, jnp.zeros(shape)))


def as_gaussian(y: Float[Array, "b *d"]) -> DiagonalGaussian:
    """The Gaussian of a network's output [b, ..., 2 c]: means first, then log standard deviations, each [b, ..., c].

    Log standard deviations are clipped to [-15, 10].

    >>> import jax.numpy as jnp
    >>> from diffjax import vae
    >>> posterior = vae.as_gaussian(jnp.zeros((4, 6)))
    >>> posterior.mean.shape
    (4, 3)

    Raises:
      ValueError: the last axis is odd.
    """
    y = as_samples("y", y)
    if y.ndim < 2 or y.shape[-1] % 2:
        raise ValueError(f"y: means and log standard deviations along the last axis are needed, got shape {y.shape}")
    mean, log_std = jnp.split(y, 2, axis=-1)
    return DiagonalGaussian(mean, jnp.clip(log_std, *LOG_STD_RANGE))


def residual_gaussian(prior: DiagonalGaussian, y: Float[Array, "b *d"]) -> DiagonalGaussian:
    """A posterior relative to its prior, N(m_p + dm, (s_p ds)^2): y [b, ..., 2 c] holds dm and log ds.

    y = 0 gives the prior, and so a divergence of 0.

    Source: Vahdat & Kautz 2020 (NVAE), section 3.2.
    """
    y = as_samples("y", y, (*prior.mean.shape[:-1], 2 * prior.mean.shape[-1]))
    change = as_gaussian(y)
    return DiagonalGaussian(prior.mean + change.mean, jnp.clip(prior.log_std + change.log_std, *LOG_STD_RANGE))
