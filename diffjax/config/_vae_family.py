"""Variational autoencoders as families: a plain one, and one of many levels.

numbers, Setting --build--> vae.AbstractVAE --make--> Family

The loss is `vae.negative_elbo`; samples are draws of the model, z from its priors and then x0 from its likelihood.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffjax import networks, vae
from diffjax._arrays import default_index
from diffjax._typing import Cond, Index, Key, Params, Sample, Scalar
from diffjax.config._family import AbstractFamily, Setting
from diffjax.losses import check_levels
from diffjax.networks._adapters import from_linen
from diffjax.training import Context, Family, Objective

DRAWS = 100
"""Of the importance-weighted bound."""
Batch: TypeAlias = tuple[Sample, Cond]
Bound: TypeAlias = tuple[Float[Array, " b"], Float[Array, " b"]]


@dataclasses.dataclass(frozen=True)
class AbstractVAEFamily(AbstractFamily):
    """A latent-variable model, trained on its negative ELBO.

    Attributes:
      likelihood: what the decoder's numbers mean: gaussian, logistic or bernoulli.
      levels: grey levels of the data, from -1 to 1, for --family.likelihood logistic; by default 256, of 8-bit images.
      beta: weight of the rate in the loss; 1 is the bound.
      free_bits: nats that each latent (vae), or each channel of them (hierarchical_vae), has free of charge.
      warm_up: share of the training over which beta rises from 0.
    """

    group: ClassVar[str] = "latent"
    """What has free bits of its own."""
    likelihood: str = "gaussian"
    levels: int | None = None
    beta: float = 1.0
    free_bits: float = 0.0
    warm_up: float = 0.0

    @abc.abstractmethod
    def build(self, setting: Setting) -> vae.AbstractVAE:
        """The model."""

    def make(self, setting: Setting) -> Family:
        model = self.build(setting)
        return Family(
            init=model.init,
            objectives=(Objective(self._loss(model, setting.steps), setting.tx, whole_batch=self.free_bits > 0),),
            sample=_sampler(model),
            options=frozenset({"temperature"}),
            nfe=one_evaluation,
            log_bound=_elbo(model),
            likelihood_kind="bound",
            tighter_bounds={f"IWAE of {DRAWS} draws": _iwae(model)},
            discrete=self.likelihood != "gaussian",
            encode=_encoder(model),
            decode=jax.jit(lambda params, z, cond: vae.decode(model, params, z, cond)),
        )

    def check_data(self, x0: np.ndarray) -> None:
        try:
            if self.likelihood == "logistic":
                check_levels(jnp.asarray(x0), self.levels or 256, -1.0, 1.0)
        except ValueError as error:
            raise ValueError(f"family.levels: {str(error).removeprefix('x0: ')}") from None
        if self.likelihood == "bernoulli" and (other := x0[(x0 != -1) & (x0 != 1)]).size:
            raise ValueError(
                f"family.likelihood: bernoulli needs data that are -1 or 1, got {other[0]}; grey images: logistic"
            )

    def _likelihood(self) -> vae.AbstractLikelihood:
        if self.levels is not None and self.likelihood != "logistic":
            raise ValueError(
                f"family.levels: {self.likelihood} has none, got {self.levels}; --family.likelihood logistic"
            )
        if self.likelihood == "logistic":
            return vae.DiscretisedLogistic(self.levels or 256)
        return vae.GaussianLikelihood() if self.likelihood == "gaussian" else vae.Bernoulli(low=-1.0)

    def _loss(
        self, model: vae.AbstractVAE, steps: int
    ) -> Callable[[Params, Batch, Context], tuple[Array, dict[str, Array]]]:
        rising = round(self.warm_up * steps)

        def loss(params: Params, batch: Batch, context: Context) -> tuple[Array, dict[str, Array]]:
            x0, cond = batch
            share = vae.linear_warm_up(context.step, steps=rising) if rising else jnp.ones(())
            given = {"gather": context.gather} if self.free_bits else {}
            value, aux = vae.negative_elbo(
                model,
                params,
                context.key,
                x0,
                cond,
                beta=self.beta * share,
                free_bits=self.free_bits,
                group=self.group,
                index=context.index,
                **given,
            )
            means = {name: jnp.mean(aux[name]) for name in ("reconstruction", "rate")}
            return value, means | {"negative_elbo": aux["negative_elbo"], "beta": self.beta * share}

        return loss


@dataclasses.dataclass(frozen=True)
class VAEFamily(AbstractVAEFamily):
    """A variational autoencoder with one level of latents (Kingma & Welling 2014).

    Vectors have perceptrons, images convolutions; labels are given to the encoder and the decoder.

    Attributes:
      latents: how many numbers a sample is encoded in, at most as many as it has.
      width: features of the hidden layers; of images, channels of the finest resolution, each coarser one having twice
        as many.
      depth: hidden layers; of images, resolutions, each half the one before.
    """

    latents: int = 16
    width: int = 32
    depth: int = 2

    def build(self, setting: Setting) -> vae.VAE:
        likelihood, shape = self._likelihood(), setting.shape
        if self.latents > math.prod(shape):
            raise ValueError(f"family.latents: at most the {math.prod(shape)} numbers of a sample, got {self.latents}")
        if len(shape) == 3:
            channels, classes = doubled(self.width, self.depth), setting.classes
            encoder = networks.ImageEncoder(self.latents, channels, num_classes=classes)
            decoder = networks.ImageDecoder(shape, channels, likelihood.outputs, num_classes=classes)
        else:
            perceptron = lambda out: networks.Perceptron(out, self.width, self.depth, num_classes=setting.classes)
            encoder = perceptron((2 * self.latents,))
            decoder = perceptron((*shape[:-1], likelihood.outputs * shape[-1]))
        return vae.VAE(from_linen(encoder), from_linen(decoder), likelihood, self.latents)


@dataclasses.dataclass(frozen=True)
class HierarchicalVAEFamily(AbstractVAEFamily):
    """A hierarchical variational autoencoder of images, from coarse to fine (a small VDVAE; Child 2021).

    Attributes:
      latents: channels of each level's latents, which are images of its resolution.
      width: channels of the finest resolution; each coarser one has twice as many.
      depth: resolutions, each half the one before.
      blocks: levels of each resolution.
    """

    group: ClassVar[str] = "channel"
    latents: int = 4
    width: int = 32
    depth: int = 2
    blocks: int = 2

    def build(self, setting: Setting) -> vae.HierarchicalVAE:
        likelihood, shape = self._likelihood(), image_shape("hierarchical_vae", setting)
        channels, blocks = doubled(self.width, self.depth), (self.blocks,) * self.depth
        network = networks.TopDown(
            shape, channels, blocks, self.latents, likelihood.outputs, num_classes=setting.classes
        )
        return vae.HierarchicalVAE(network=network, likelihood=likelihood)


def doubled(width: int, depth: int) -> tuple[int, ...]:
    """Channels of so many resolutions, the finest first."""
    return tuple(width * 2**level for level in range(depth))


def image_shape(name: str, setting: Setting) -> tuple[int, ...]:
    """The shape (h, w, c) of samples, or a `ValueError` that names the family."""
    if len(setting.shape) != 3:
        raise ValueError(f"family.name: {name} is for images, got samples of shape {setting.shape}; take vae")
    return setting.shape


def one_evaluation(*, temperature: float | None = None) -> int:
    """A sample is one evaluation of the decoder."""
    if temperature is not None and not 0 <= temperature <= float(np.finfo(np.float32).max):
        raise ValueError(f"temperature: a finite number, not below 0, got {temperature}")
    return 1


def _sampler(model: vae.AbstractVAE) -> Callable[..., Sample]:
    @jax.jit
    def sample(
        params: Params, key: Key, index: Index, cond: Cond = None, *, temperature: Scalar | None = None
    ) -> Sample:
        return vae.generate(model, params, key, index, cond, temperature=1.0 if temperature is None else temperature)

    return sample


def _elbo(model: vae.AbstractVAE) -> Callable[..., Bound]:
    """The ELBO by one draw of the latents, whose standard error is not known."""
    negative = jax.jit(lambda *args, index: vae.negative_elbo(model, *args, index=index)[1]["per_sample"])

    def log_bound(params: Params, key: Key, x0: Sample, cond: Cond = None, *, index: Index | None = None) -> Bound:
        nats = -negative(params, key, x0, cond, index=default_index(x0.shape[0], index))
        return nats, jnp.full_like(nats, jnp.nan)

    return log_bound


def _iwae(model: vae.AbstractVAE) -> Callable[..., Bound]:
    def bound(params: Params, key: Key, x0: Sample, cond: Cond = None, *, index: Index | None = None) -> Bound:
        return vae.iwae_bound(model, params, key, x0, cond, draws=DRAWS, index=index)

    return bound


def _encoder(model: vae.AbstractVAE) -> Callable[..., Params]:
    """Draws of q(z | x0), a tuple of one [b, ...] a level, the top first."""

    @jax.jit
    def encode(params: Params, key: Key, x0: Sample, cond: Cond = None, *, index: Index | None = None) -> Params:
        levels = vae.infer(model, params, key, x0, cond, index=index).levels
        return cast(Params, tuple(level.z for level in levels))

    return encode
