"""Latent-variable models as one top-down pass, which inference, generation and decoding share.

    p(z_L) ... p(z_l | z_>l) ... p(z_1 | z_>1) p(x | z)          generation
    q(z_L | x) ... q(z_l | z_>l, x) ... q(z_1 | z_>1, x)         inference, the same pass with posteriors

A model's `top_down` walks through its levels, the top first, and at each asks `draw(prior, posterior) -> z`. What
`draw` does makes the pass one or the other:

    infer       z ~ posterior, of data x0        levels and log p(x0 | z): all that a bound needs
    infer_at    z as given, of data x0           log p(x0, z) - log q(z | x0) at any point
    generate    z ~ prior                        x0 ~ p(x | z)
    decode      z as given                       the mean of p(x | z)

A plain VAE has one level. Source: Sonderby et al. 2016 (Ladder VAE), section 2; Kingma & Welling 2014.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import (
    answered,
    as_index,
    as_samples,
    at_once,
    check,
    check_key,
    check_real,
    default_index,
    part_of,
    sample_keys,
    sum_features,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Cond, Index, Key, Network, Params, Sample, Scalar
from diffjax.vae._gaussian import AbstractPrior, DiagonalGaussian, StandardNormal, as_gaussian
from diffjax.vae._likelihoods import AbstractLikelihood

Draw: TypeAlias = Callable[[AbstractPrior, DiagonalGaussian | None, tuple[int, ...]], Array]
"""`(prior, posterior or None, shape of z) -> z`, called once a level, the top first."""


class Level(NamedTuple):
    """One level of an inference."""

    z: Float[Array, "b *d"]
    """Latents [b, *d]."""
    prior: AbstractPrior
    """p(z | levels above)."""
    posterior: DiagonalGaussian
    """q(z | levels above, x0)."""

    @property
    def rate(self) -> Float[Array, "b *d"]:
        """KL(q || p) by latent, nats [b, *d]."""
        return self.prior.divergence(self.posterior)


class Inference(NamedTuple):
    """What `infer` returns."""

    levels: tuple[Level, ...]
    """The top first."""
    y: Array
    """The decoder's output [b, ...], of which the likelihood makes a distribution."""
    log_likelihood: Float[Array, " b"]
    """log p(x0 | z) in nats."""

    @property
    def rates(self) -> Float[Array, "b levels"]:
        """KL of each level, nats [b, levels], the top first."""
        return jnp.stack([sum_features(level.rate) for level in self.levels], axis=1)

    @property
    def log_weight(self) -> Float[Array, " b"]:
        """log p(x0, z) - log q(z | x0) in nats, [b]: an unbiased estimate of the bound, and of p(x0) as a weight."""
        of_prior = (sum_features(level.prior.log_prob(level.z)) for level in self.levels)
        of_posterior = (sum_features(level.posterior.log_prob(level.z)) for level in self.levels)
        return self.log_likelihood + sum(of_prior) - sum(of_posterior)


class AbstractVAE(eqx.Module):
    """A latent-variable model without its parameters: what `negative_elbo`, `generate` and the others take.

    Subclasses are `VAE` (one level), `HierarchicalVAE` (any number) and `DiffusionChain` (a diffusion model).
    """

    likelihood: eqx.AbstractVar[AbstractLikelihood]

    @abc.abstractmethod
    def init(self, key: Key, x0: Sample, cond: Cond = None) -> Params:
        """Parameters, a pytree with `params["likelihood"]`, for data like x0 [b, *d] and cond."""

    @abc.abstractmethod
    def top_down(
        self, params: Params, draw: Draw, n: int, x0: Sample | None, cond: Cond = None, *, key: Key | None = None
    ) -> Array:
        """The decoder's output y [n, ...].

        Args:
          params: of the model.
          draw: `(prior, posterior, shape) -> z`, called once a level, the top first.
          n: the batch size.
          x0: data [n, *d] to infer from; None: there are no posteriors.
          cond: conditions, a pytree of [n, ...], or None.
          key: of the networks' dropout; None to evaluate.
        """


@checked_numbers
class VAE(AbstractVAE):
    """A variational autoencoder with one level of latents.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import from_linen, networks, vae
    >>> encoder = from_linen(networks.Perceptron((2 * 3,), width=16, depth=1))
    >>> decoder = from_linen(networks.Perceptron((2,), width=16, depth=1))
    >>> model, x0 = VAE(encoder, decoder, vae.GaussianLikelihood(), latents=3), jnp.ones((4, 2))
    >>> params = model.init(jax.random.key(0), x0)
    >>> sorted(params)
    ['decoder', 'encoder', 'likelihood']
    >>> generate(model, params, jax.random.key(1), jnp.arange(5)).shape
    (5, 2)

    Attributes:
      encoder: `(x0 [b, *d], c_noise, cond) -> [b, ..., 2 c]`, means and log standard deviations of the latents
        [b, ..., c] along the last axis. c_noise is zeros [b], so that any network of this library will do.
      decoder: `(z [b, ..., c], c_noise, cond) -> y`, what the likelihood needs for x0.
      likelihood: p(x0 | y).
      latents: the shape of one sample's z, such as 16, (16,) or (7, 7, 4).
      prior: p(z); `AutoregressivePrior` holds a least rate.

    Raises:
      ValueError: a part is of another kind, or there is no latent.
    """

    encoder: Network = eqx.field(static=True)
    decoder: Network = eqx.field(static=True)
    likelihood: AbstractLikelihood
    latents: tuple[int, ...] = eqx.field(static=True)
    prior: AbstractPrior = StandardNormal()

    def __init__(
        self,
        encoder: Network,
        decoder: Network,
        likelihood: AbstractLikelihood,
        latents: int | tuple[int, ...],
        prior: AbstractPrior = StandardNormal(),
    ):
        kinds = {"encoder": Network, "decoder": Network, "likelihood": AbstractLikelihood, "prior": AbstractPrior}
        for (name, kind), part in zip(kinds.items(), (encoder, decoder, likelihood, prior), strict=True):
            if not isinstance(part, kind):
                how = " (from_linen makes one)" if kind is Network else ""
                raise ValueError(f"{name}: {kind.__name__} is needed{how}, got {type(part).__name__}")
        shape = (latents,) if isinstance(latents, int) else tuple(latents)
        if not shape or min(shape) < 1:
            raise ValueError(f"latents: at least one latent is needed, got {latents}")
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.latents, self.prior = shape, prior

    def init(self, key: Key, x0: Sample, cond: Cond = None) -> Params:
        check_key(key)
        x0 = as_samples("x0", x0)
        keys = [jax.random.fold_in(key, i) for i in range(3)]
        none, z = jnp.zeros(x0.shape[0]), jnp.zeros((x0.shape[0], *self.latents))
        encoder, decoder = self.encoder.init(keys[0], x0, none, cond), self.decoder.init(keys[1], z, none, cond)
        y = jax.eval_shape(self.decoder.apply, decoder, z, none, cond)
        own = self.likelihood.init(keys[2], jnp.zeros(y.shape, y.dtype), x0)
        return {"encoder": encoder, "decoder": decoder, "likelihood": own}

    @checked_numbers
    def top_down(
        self, params: Params, draw: Draw, n: int, x0: Sample | None, cond: Cond = None, *, key: Key | None = None
    ) -> Array:
        encoder_key, decoder_key = (None, None) if key is None else jax.random.split(key)
        none, posterior = jnp.zeros(n), None
        if x0 is not None:
            y = self.encoder.apply(part_of(params, "encoder", "VAE"), x0, none, cond, key=encoder_key)
            posterior = as_gaussian(answered("encoder", y, (n, *self.latents[:-1], 2 * self.latents[-1])))
        z = draw(self.prior, posterior, (n, *self.latents))
        return self.decoder.apply(part_of(params, "decoder", "VAE"), z, none, cond, key=decoder_key)


def check_vae(vae: Any) -> None:
    """Raises `ValueError` where something else than an `AbstractVAE` is given, such as its encoder."""
    if not isinstance(vae, AbstractVAE):
        raise ValueError(f"vae: VAE(encoder, decoder, likelihood, latents) is needed, got {type(vae).__name__}")


def infer(
    vae: AbstractVAE,
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    index: Index | None = None,
    dropout: Key | None = None,
) -> Inference:
    """Draws latents of data, z ~ q(z | x0), level by level.

    Args:
      vae: the model.
      params: its parameters.
      key: for the latents; those of sample i at a level depend on (key, level, index_i) alone.
      x0: data [b, *d].
      cond: conditions, a pytree of [b, ...], or None.
      index: global indices [b] of the samples (default 0 .. b - 1).
      dropout: a key that turns the networks' dropout on; None to evaluate.

    Returns:
      `Inference(levels, y, log_likelihood [b])`; latents are `level.z` [b, *d] of its levels, the top first.

    Raises:
      ValueError: a level without a latent, no level, or params without a part.
    """
    check_vae(vae)
    check_key(key)
    x0 = as_samples("x0", x0)
    index = default_index(x0.shape[0], index)
    choose = lambda i, level: level.posterior.sample(sample_keys(jax.random.fold_in(key, i), index))
    return _inferred(vae, params, choose, x0, cond, dropout)


def infer_at(vae: AbstractVAE, params: Params, z: tuple[Array, ...], x0: Sample, cond: Cond = None) -> Inference:
    """`infer` at given latents, one [b, *d] a level, the top first: its `log_weight` is log p(x0, z) - log q(z | x0).

    Args:
      vae, params, x0, cond: as `infer`'s, x0 [b, *d].
      z: latents of each level, a tuple, each [b, ...].

    Raises:
      ValueError: z is no tuple, has fewer or more levels, or latents of another shape, or params lack a part.
    """
    check_vae(vae)
    x0 = as_samples("x0", x0)
    inference = _inferred(vae, params, _given(z), x0, cond, None)
    _check_all_used(z, len(inference.levels))
    return inference


def _inferred(vae, params, choose, x0, cond, dropout):
    levels = []

    def draw(prior, posterior, shape):
        _check_level(len(levels), shape)
        assert posterior is not None  # there is x0
        level = Level(posterior.mean, prior, posterior)
        levels.append(level._replace(z=as_samples("z", choose(len(levels), level), shape)))
        return levels[-1].z

    keys = (None, None) if dropout is None else jax.random.split(dropout)
    y = vae.top_down(params, draw, x0.shape[0], x0, cond, key=keys[0])
    if not levels:
        raise ValueError(f"vae: at least one level of latents is needed, got none of {type(vae).__name__}")
    outputs = vae.likelihood.outputs
    y = answered("decoder", y, (*x0.shape[:-1], outputs * x0.shape[-1]) if outputs else (x0.shape[0], ...))
    log_likelihood = vae.likelihood.log_prob(part_of(params, "likelihood", "VAE"), y, x0, key=keys[1])
    return Inference(tuple(levels), y, answered("likelihood", log_likelihood, x0.shape[:1]))


def _given(z):
    """`(level, ...) -> z[level]`, for passes whose latents are known."""
    if not isinstance(z, tuple | list):
        raise ValueError(f"z: a tuple with the latents of each level, the top first, is needed, got {type(z).__name__}")

    def choose(i, level):
        if i >= len(z):
            raise ValueError(f"z: latents of every level are needed, got those of {len(z)}")
        return z[i]

    return choose


def _check_all_used(z, levels):
    if len(z) > levels:
        raise ValueError(f"z: the latents of {levels} level{'s' if levels > 1 else ''} are needed, got {len(z)}")


def _check_level(number, shape):
    if 0 in shape[1:]:
        raise ValueError(f"latents: at least one latent is needed at level {number} (0 is the top), got shape {shape}")


def generate(
    vae: AbstractVAE,
    params: Params,
    key: Key,
    index: Index,
    cond: Cond = None,
    *,
    temperature: Scalar | tuple[Scalar, ...] = 1.0,
    noise: bool = True,
) -> Sample:
    """Draws of the model, x0 ~ p(x): latents from the priors, then data from the likelihood.

    Args:
      vae: the model.
      params: its parameters.
      key: sample i depends on (key, index_i) alone.
      index: global indices [n]; their number is that of the samples.
      cond: conditions, a pytree of [n, ...], or None.
      temperature: multiplies the standard deviations of the priors: one number, or one a level, the top first. 1
        draws from the model; lower ones give more typical samples.
      noise: whether x0 is drawn from p(x | z); False gives its mean.

    Returns:
      Samples [n, *d].

    Raises:
      ValueError: indices that are none, a temperature that is negative, not finite, or not one a level, or params
        without a part; an encoder's are not needed.

    Source: temperatures by level: Child 2021 (VDVAE), section 5.
    """
    check_vae(vae)
    check_key(key)
    index = as_index(index)
    for one in temperature if isinstance(temperature, tuple) else (temperature,):
        check_real("temperature", one)
        with at_once(one):
            check((jnp.asarray(one) >= 0) & jnp.isfinite(one), f"temperature: a finite number, not below 0, got {one}")
    latent_key, data_key = jax.random.split(key)
    levels = []

    def draw(prior, posterior, shape):
        number = len(levels)
        _check_level(number, shape)
        levels.append(None)
        if isinstance(temperature, tuple) and number >= len(temperature):
            raise ValueError(f"temperature: one number, or one a level, is needed, got {temperature}")
        own = temperature[number] if isinstance(temperature, tuple) else temperature
        keys = sample_keys(jax.random.fold_in(latent_key, number), index)
        return as_samples("z", prior.sample(keys, shape, own), shape)

    y = vae.top_down(params, draw, index.shape[0], None, cond)
    if isinstance(temperature, tuple) and len(temperature) != len(levels):
        raise ValueError(f"temperature: one number, or one a level ({len(levels)}), is needed, got {temperature}")
    if not noise:
        return vae.likelihood.mean(part_of(params, "likelihood", "VAE"), y)
    return vae.likelihood.sample(part_of(params, "likelihood", "VAE"), sample_keys(data_key, index), y)


def decode(vae: AbstractVAE, params: Params, z: tuple[Array, ...], cond: Cond = None) -> Sample:
    """The mean of p(x0 | z), [b, *d], of latents z, a tuple of one [b, ...] a level, the top first.

    `decode(vae, params, tuple(level.z for level in infer(...).levels))` reconstructs data.

    Args:
      vae: the model.
      params: its parameters.
      z: latents of each level.
      cond: conditions, a pytree of [b, ...], or None.

    Raises:
      ValueError: z is no tuple, has fewer or more levels, or latents of another shape, or params lack a part.
    """
    check_vae(vae)
    choose, count = _given(z), []
    z = tuple(as_samples("z", part) for part in z)
    if not z:
        raise ValueError("z: the latents of at least one level are needed, got none")

    def draw(prior, posterior, shape):
        count.append(None)
        return as_samples("z", choose(len(count) - 1, None), shape)

    y = vae.top_down(params, draw, z[0].shape[0], None, cond)
    _check_all_used(z, len(count))
    return vae.likelihood.mean(part_of(params, "likelihood", "VAE"), y)
