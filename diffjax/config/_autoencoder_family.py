"""Latent diffusion's autoencoder as a family: reconstruction, and latents of mean 0 and variance 1 to go on with.

params    autoencoder --> autoencoder_loss     moments --> (mean z, mean z^2)
          critic, where it has a weight
sample    N(0, I) --> std z + mean --decode--> x0
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from diffjax import networks, vae
from diffjax._arrays import check_key, normal_like, sample_keys
from diffjax._typing import Cond, Index, Key, Params, Sample, Scalar
from diffjax.config._family import AbstractFamily, Setting
from diffjax.config._vae_family import Batch, doubled, image_shape, one_evaluation
from diffjax.interop import read_classifier
from diffjax.networks import (
    AutoencoderKL,
    Classifier,
    LatentSpace,
    PatchDiscriminator,
    classifier_features,
    draw_parameters,
)
from diffjax.training import Context, Family, Objective

RATE = 0.05
"""Of the latents' moments: each step moves them so far towards those of its batch."""
Loss: TypeAlias = tuple[Array, dict[str, Array]]


@dataclasses.dataclass(frozen=True)
class AutoencoderFamily(AbstractFamily):
    """The KL autoencoder of latent diffusion: images to small images of latents, and back (Rombach et al. 2022).

    It is no generative model. Its latents are scaled to mean 0 and variance 1 over the training data, and its samples
    decode draws of N(0, I) at that scale, which nothing was trained to match: they show what is lacking until diffusion
    models the latents. There are no labels. A run becomes a folder that diffusers reads by

        import jax.numpy as jnp
        from diffjax import config, interop, vae

        run, params = config.load_run("runs/digits_autoencoder")
        module, weights = config.trained_autoencoder(run, params)
        x0 = jnp.asarray(config.build_data(run.config.data).train[0][:1000])  # without: the scale that training kept
        module = vae.with_unit_latents(module, weights, x0)
        interop.save_pretrained("vae", weights, interop.autoencoder_config(module))

    Attributes:
      latents: channels of the latents.
      width: channels of the finest resolution; each coarser one has twice as many.
      depth: resolutions, each half the one before; the latents have the size of the last.
      blocks: residual blocks of each resolution.
      kl_weight: weight of the divergence from N(0, I), in nats over the number of pixels and channels.
      critic_weight: weight of a critic of patches, which is trained beside it; 0 is none.
      critic_start: share of the training before the critic counts, so that the reconstruction settles first; the critic
        itself learns from the first step.
      perceptual: folder of a classifier whose features a reconstruction is to share, as scripts/train_classifier.py
        writes it: needed to train and to resume, not to sample. None: no such term.
      perceptual_weight: weight of the mean square of the difference of the features of --family.perceptual.
    """

    latents: int = 4
    width: int = 32
    depth: int = 2
    blocks: int = 1
    kl_weight: float = 1e-6
    critic_weight: float = 0.0
    critic_start: float = 0.0
    perceptual: str | None = None
    perceptual_weight: float = 1.0

    def module(self, shape: tuple[int, ...]) -> AutoencoderKL:
        """The network for images of a shape (h, w, c), with a scale of 1."""
        groups = max(1, math.gcd(self.width, 128) // 4)  # of four channels at least, up to 32, where width allows it
        return AutoencoderKL(
            in_channels=shape[2],
            out_channels=shape[2],
            latent_channels=self.latents,
            channels=doubled(self.width, self.depth),
            blocks=self.blocks,
            groups=groups,
            scaling_factor=1.0,
        )

    def make(self, setting: Setting) -> Family:
        shape = self._checked(setting)
        module, critic = self.module(shape), PatchDiscriminator((self.width, 2 * self.width))
        judged, late = self.critic_weight > 0, round(self.critic_start * setting.steps)

        def init(key: Key, x0: Sample, cond: Cond) -> Params:
            keys = [jax.random.fold_in(key, i) for i in range(2)]
            params = {"autoencoder": draw_parameters(keys[0], module.init, x0)["params"]}
            params["moments"] = {"mean": jnp.zeros(()), "square": jnp.ones(())}
            return params | ({"critic": draw_parameters(keys[1], critic.init, x0)["params"]} if judged else {})

        @functools.cache
        def features() -> Callable[[Sample], Array] | None:
            found = self._classifier(shape[2])
            return None if found is None else functools.partial(classifier_features, *found)

        def judge(params: Params) -> Callable[[Sample], Array]:
            return lambda x: jnp.asarray(critic.apply({"params": params["critic"]}, x))

        def learn(params: Params, batch: Batch, context: Context) -> Loss:
            loss, aux = vae.autoencoder_loss(
                module,
                params["autoencoder"],
                context.key,
                batch[0],
                kl_weight=self.kl_weight,
                perceptual=features(),
                perceptual_weight=self.perceptual_weight,
                critic=judge(params) if judged else None,
                critic_weight=jnp.where(context.step < late, 0.0, self.critic_weight),
                index=context.index,
            )
            shown = ("reconstruction", "kl", *(() if self.perceptual is None else ("perceptual",)))
            return loss, {name: jnp.mean(aux[name]) for name in shown}

        def follow(params: Params, batch: Batch, context: Context) -> Loss:
            """Its gradient is the distance to the batch's moments: a step of gradient descent is a moving average."""
            mean, std = LatentSpace(params["autoencoder"], module).moments(batch[0])
            first, second = jnp.mean(mean), jnp.mean(mean**2 + std**2)
            moments = params["moments"]
            loss = 0.5 * ((moments["mean"] - first) ** 2 + (moments["square"] - second) ** 2)
            return loss, {"latent_mean": first, "latent_std": jnp.sqrt(second - first**2)}

        def criticise(params: Params, batch: Batch, context: Context) -> Loss:
            y = vae.reconstruct(module, params["autoencoder"], context.key, batch[0], index=context.index)
            loss, aux = vae.critic_loss(judge(params), batch[0], y)
            return loss, {"accuracy": aux["accuracy"]}

        objectives = (Objective(learn, setting.tx, "autoencoder"), Objective(follow, optax.sgd(RATE), "moments"))
        latent = (*(side // 2 ** (self.depth - 1) for side in shape[:2]), self.latents)
        return Family(
            init=init,
            objectives=(*objectives, Objective(criticise, setting.tx, "critic")) if judged else objectives,
            sample=_sampler(module, latent),
            options=frozenset({"temperature"}),
            nfe=one_evaluation,
            encode=_encoder(module),
            decode=jax.jit(lambda params, z, cond: _decoded(module, params, z)),
        )

    def trained(self, shape: tuple[int, ...], params: Params) -> tuple[AutoencoderKL, Params]:
        """(module, its parameters) of a run's parameters, with the scale that its training kept."""
        mean, std = _scale(params)
        module = self.module(shape).clone(scaling_factor=float(1 / std), shift_factor=float(mean))
        return module, params["autoencoder"]

    def check_data(self, x0: np.ndarray) -> None:
        self._classifier(x0.shape[-1])

    def _classifier(self, channels: int) -> tuple[Classifier, Params] | None:
        """The classifier whose features are compared, of images with so many channels; None if there is none."""
        if self.perceptual is None:
            return None
        try:
            classifier, params = read_classifier(self.perceptual)
        except ValueError as error:
            raise ValueError(f"family.perceptual: {str(error).removeprefix('path: ')}") from None
        if (own := params["body"]["in"]["kernel"].shape[2]) != channels:
            raise ValueError(
                f"family.perceptual: the classifier in {self.perceptual} is of images with {own} channels, the data "
                f"have {channels}; train one on these data, scripts/train_classifier.py"
            )
        return classifier, params

    def _checked(self, setting: Setting) -> tuple[int, ...]:
        shape = image_shape("autoencoder", setting)
        if self.critic_start and not self.critic_weight:
            share = self.critic_start
            raise ValueError(f"family.critic_start: there is no critic, got {share}; give --family.critic-weight")
        if self.perceptual is None and self.perceptual_weight != type(self).perceptual_weight:
            weight = self.perceptual_weight
            raise ValueError(f"family.perceptual_weight: there are no features, got {weight}; give --family.perceptual")
        if setting.classes is not None:
            raise ValueError(
                f"data.conditional: autoencoder takes no labels, got {setting.classes} classes; --data.no-conditional"
            )
        smaller = 2 ** (self.depth - 1)
        if any(side % smaller for side in shape[:2]):
            raise ValueError(f"family.depth: sides must be multiples of 2^(depth - 1) = {smaller}, got {shape}")
        most = shape[2] * smaller**2
        if self.latents > most:
            raise ValueError(f"family.latents: at most {most}, for no more latents than pixels, got {self.latents}")
        return shape


def _scale(params: Params) -> tuple[Array, Array]:
    """(mean, std) of the latents over the training data, two scalars."""
    mean, square = params["moments"]["mean"], params["moments"]["square"]
    return mean, jnp.sqrt(jnp.maximum(square - mean**2, 1e-6))


def _decoded(module: networks.AutoencoderKL, params: Params, z: Sample) -> Sample:
    mean, std = _scale(params)
    return LatentSpace(params["autoencoder"], module).decode(mean + std * z)


def _encoder(module: networks.AutoencoderKL) -> Callable[..., Sample]:
    @jax.jit
    def encode(params: Params, key: Key, x0: Sample, cond: Cond = None, *, index: Index | None = None) -> Sample:
        mean, std = _scale(params)
        return (LatentSpace(params["autoencoder"], module).encode(key, x0, index=index) - mean) / std

    return encode


def _sampler(module: networks.AutoencoderKL, shape: tuple[int, ...]) -> Callable[..., Sample]:
    @jax.jit
    def sample(
        params: Params, key: Key, index: Index, cond: Cond = None, *, temperature: Scalar | None = None
    ) -> Sample:
        check_key(key)
        z = normal_like(sample_keys(key, index), jnp.zeros((index.shape[0], *shape)))
        return _decoded(module, params, jnp.asarray((1.0 if temperature is None else temperature) * z))

    return sample
