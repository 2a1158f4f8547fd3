"""Generative adversarial networks as families: a plain one, and a denoising diffusion GAN.

numbers, Setting --build--> gan.AbstractGAN --training_losses--> discriminator, generator (, power) --> Family

A train step is an update of the discriminator, or several, and one of the generator.
"""

import abc
import dataclasses
from collections.abc import Callable

import jax
import numpy as np
import optax

from diffjax import gan, networks
from diffjax._typing import Cond, Index, Key, Params, Sample, Scalar
from diffjax.config._family import AbstractFamily, Setting
from diffjax.config._vae_family import doubled, one_evaluation
from diffjax.networks._adapters import from_linen
from diffjax.process._vp import VariancePreserving
from diffjax.training import Family, Objective

LOSSES = {"non_saturating": gan.NonSaturating, "hinge": gan.Hinge, "relativistic": gan.Relativistic}


@dataclasses.dataclass(frozen=True)
class AbstractGANFamily(AbstractFamily):
    """A generator and a discriminator.

    Vectors have perceptrons, images convolutions; labels are given to both networks.

    Attributes:
      loss: non_saturating, hinge (with spectral norm) or relativistic.
      latents: how many numbers a sample is made from.
      width: features of the hidden layers, even; of images, channels of the finest resolution, each coarser one having
        twice as many.
      depth: hidden layers; of images, resolutions, each half the one before.
      r1: weight of the penalty on the discriminator's gradient at data; 0 is none.
      r2: weight of the penalty on its gradient at samples; 0 is none.
      gamma_final: the penalties' weights at the last step, as a fraction of the first; they fall along a cosine.
      every: the penalties are added at the steps that it divides, multiplied by it; 1 is at each step.
      updates: how often the discriminator is updated in a step, each time on its part of the batch.
      generator_rate: the generator's learning rate over the discriminator's, which is the optimiser's.
    """

    loss: str = "non_saturating"
    latents: int = 16
    width: int = 32
    depth: int = 2
    r1: float = 0.1
    r2: float = 0.0
    gamma_final: float = 1.0
    every: int = 1
    updates: int = 1
    generator_rate: float = 1.0

    @abc.abstractmethod
    def build(self, setting: Setting) -> gan.AbstractGAN:
        """The model."""

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        return 1

    def make(self, setting: Setting) -> Family:
        if self.width % 2:
            raise ValueError(f"family.width: an even number is needed, got {self.width}")
        model = self.build(setting)
        gammas = {
            name: optax.cosine_decay_schedule(gamma, setting.steps, self.gamma_final) if gamma else 0.0
            for name, gamma in (("r1", self.r1), ("r2", self.r2))
        }
        losses = gan.training_losses(model, loss=LOSSES[self.loss](), every=self.every, **gammas)
        times = {"discriminator": self.updates, "generator": 1}
        tx = {name: setting.optimiser(n) for name, n in times.items()} | {"power": optax.sgd(1.0)}
        if self.generator_rate != 1:
            tx["generator"] = optax.chain(tx["generator"], optax.scale(self.generator_rate))
        return Family(
            init=model.init,
            objectives=tuple(
                Objective(loss_fn, tx[name], name, times.get(name, 1)) for name, loss_fn in losses.items()
            ),
            sample=_sampler(model),
            options=frozenset({"temperature"}),
            nfe=lambda *, temperature=None: self.evaluations * one_evaluation(temperature=temperature),
            decode=jax.jit(model.decode) if isinstance(model, gan.GAN) else None,
        )

    @property
    def spectral(self) -> bool:
        return self.loss == "hinge"

    def discriminator(self, setting: Setting) -> networks.Discriminator | networks.ImageDiscriminator:
        """The discriminator's module, for samples or for pairs of them."""
        classes = setting.classes
        if len(setting.shape) == 3:
            channels = doubled(self.width, self.depth)
            return networks.ImageDiscriminator(channels, num_classes=classes, zero=not self.spectral)
        return networks.Discriminator(self.width, self.depth, num_classes=classes)


@dataclasses.dataclass(frozen=True)
class GANFamily(AbstractGANFamily):
    """A generative adversarial network: a sample is one evaluation of the generator.

    With the relativistic loss, both penalties, --family.gamma-final 0.1, --optimiser.beta1 0, --optimiser.beta2 0.9 and
    --optimiser.beta2-final 0.99 it is R3GAN (Huang et al. 2024).
    """

    def build(self, setting: Setting) -> gan.GAN:
        classes = setting.classes
        if len(setting.shape) == 3:
            generator = networks.ImageGenerator(setting.shape, doubled(self.width, self.depth), num_classes=classes)
        else:
            generator = networks.Perceptron(setting.shape, self.width, self.depth, num_classes=classes)
        return gan.GAN(from_linen(generator), from_linen(self.discriminator(setting)), self.latents, self.spectral)


@dataclasses.dataclass(frozen=True)
class DenoisingGANFamily(AbstractGANFamily):
    """A denoising diffusion GAN: a few steps from noise, each by a generator (Xiao et al. 2022).

    Attributes:
      latents: how many numbers each step draws for its generator.
      steps: from noise to data, 1 to 8, equal in t, of the process variance_preserving; in training and in sampling
        alike.
    """

    r1: float = 0.05
    steps: int = 4

    @property
    def evaluations(self) -> int:
        return self.steps

    def build(self, setting: Setting) -> gan.DenoisingGAN:
        if len(setting.shape) == 3:
            module = networks.UNet(doubled(self.width, self.depth), blocks=1, attention=())
        else:
            module = networks.PlainMLP(self.width, self.depth)  # with residuals and norms (MLP) it learns slower
        generator = networks.LatentNetwork(module, self.width, num_classes=setting.classes)
        parts = from_linen(generator), from_linen(self.discriminator(setting))
        ts = np.linspace(1.0, 0.0, self.steps + 1)
        return gan.DenoisingGAN(*parts, VariancePreserving(), ts, setting.shape, self.latents, self.spectral)


def _sampler(model: gan.AbstractGAN) -> Callable[..., Sample]:
    @jax.jit
    def sample(
        params: Params, key: Key, index: Index, cond: Cond = None, *, temperature: Scalar | None = None
    ) -> Sample:
        temperature = 1.0 if temperature is None else temperature
        return gan.generate_samples(model, params, key, index, cond, temperature=temperature)

    return sample
