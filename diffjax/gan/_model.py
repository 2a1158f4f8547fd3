"""Generative adversarial networks: what is judged, and the two losses, which the plain and the denoising one share.

    key, x0, cond --pairs--> real, fake, given --judge--> D(real | given), D(fake | given) --+--> discriminator_loss
                                                                                            +--> generator_loss

    GAN             real = x0,  fake = G(z),  nothing given
    DenoisingGAN    real = xs,  fake = a step from xt by G,  given (xt, t)

Parameters are {"generator": ..., "discriminator": ...}, and with spectral norm "power", the vectors of its power
iteration. The losses of a train step are those of `training_losses`, one for each of these entries.

Source: Goodfellow et al. 2014, arXiv:1406.2661; conditional: Mirza & Osindero 2014, arXiv:1411.1784.
"""

import abc
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffjax._arrays import (
    answered,
    as_index,
    as_samples,
    check_key,
    default_index,
    mean_features,
    normal_like,
    part_of,
    sample_keys,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Cond, Index, Key, Network, Params, Sample, Scalar, WholeNumber
from diffjax.gan._losses import AbstractGANLoss, Logits, NonSaturating, check_loss
from diffjax.gan._penalties import check_nonnegative, gradient_penalty, init_power, lazy, spectral_norm

Gamma: TypeAlias = Scalar | Callable[[Any], Any]
"""The weight of a penalty, or a schedule of it, `step -> gamma`, such as those of optax."""


class Pairs(NamedTuple):
    """What a discriminator has to tell apart.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import from_linen, gan, networks
    >>> parts = networks.Perceptron((2,), width=16, depth=1), networks.Discriminator(width=16, depth=1)
    >>> model, x0 = gan.GAN(*map(from_linen, parts), latents=4), jnp.ones((3, 2))
    >>> pairs = model.pairs(model.init(jax.random.key(0), x0), jax.random.key(1), x0, index=jnp.arange(3))
    >>> print(pairs.real.shape, pairs.fake.shape, pairs.given)
    (3, 2) (3, 2) None
    """

    real: Sample
    """Data [b, *d]; of a denoising GAN at the end of a step."""
    fake: Sample
    """Samples [b, *d], differentiable in the generator's parameters."""
    given: Any = None
    """What both are judged with, a pytree of [b, ...], or None."""


class AbstractGAN(eqx.Module):
    """A generator and a discriminator without their parameters: what the losses and `generate_samples` take.

    Subclasses are `GAN` and `DenoisingGAN`.
    """

    generator: eqx.AbstractVar[Network]
    discriminator: eqx.AbstractVar[Network]
    latents: eqx.AbstractVar[int]
    spectral: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def init(self, key: Key, x0: Sample, cond: Cond = None) -> Params:
        """Parameters, a dict with "generator", "discriminator" and perhaps "power", for data like x0 [b, *d]."""

    @abc.abstractmethod
    def pairs(self, params: Params, key: Key, x0: Sample, cond: Cond = None, *, index: Index) -> Pairs:
        """Data and samples to be judged, [b, *d]; those of place i depend on (key, index_i) alone."""

    @abc.abstractmethod
    def logits(self, weights: Params, x: Sample, given: Any, cond: Cond = None) -> Logits:
        """The discriminator's logits [b, *m] for x [b, *d], by its weights, normalised where that is wanted."""

    @abc.abstractmethod
    def generate(
        self, params: Params, key: Key, index: Index, cond: Cond = None, *, temperature: Scalar = 1.0
    ) -> Sample:
        """Samples [n, *d] for global indices [n]; see `generate_samples`."""

    def judge(self, params: Params, given: Any = None, cond: Cond = None) -> Callable[[Sample], Logits]:
        """The discriminator as a function `x [b, *d] -> logits [b, *m]`, with spectral norm where it has that."""
        weights = part_of(params, "discriminator", "GAN")
        if self.spectral:
            weights = spectral_norm(weights, part_of(params, "power", "GAN"))[0]
        return lambda x: answered("discriminator", self.logits(weights, x, given, cond), (x.shape[0], ...))


@checked_numbers
class GAN(AbstractGAN):
    """A generative adversarial network: samples are drawn by one evaluation of a network.

        x0 = G(z, cond),   z ~ N(0, I)

    A conditional one has `num_classes` in both networks; `init`, the losses and `generate_samples` are given labels.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import from_linen, gan, networks
    >>> generator = from_linen(networks.Perceptron((2,), width=16, depth=1))
    >>> discriminator = from_linen(networks.Discriminator(width=16, depth=1))
    >>> model = GAN(generator, discriminator, latents=4)
    >>> params = model.init(jax.random.key(0), jnp.ones((4, 2)))
    >>> sorted(params)
    ['discriminator', 'generator']
    >>> gan.generate_samples(model, params, jax.random.key(1), jnp.arange(5)).shape
    (5, 2)

    Attributes:
      generator: `(z [b, latents], c_noise, cond) -> x0 [b, *d]`, such as `networks.Perceptron` or `ImageGenerator`.
        c_noise is zeros [b], for both, so that any network of this library will do.
      discriminator: `(x [b, *d], c_noise, cond) -> logits [b, *m]`, such as `networks.ImageDiscriminator`.
      latents: how many numbers z has.
      spectral: whether the discriminator has spectral norm.

    Raises:
      ValueError: a part is of another kind, or there is no latent.

    Source: Goodfellow et al. 2014, arXiv:1406.2661; conditional: Mirza & Osindero 2014, arXiv:1411.1784.
    """

    generator: Network = eqx.field(static=True)
    discriminator: Network = eqx.field(static=True)
    latents: int = eqx.field(static=True)
    spectral: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        check_parts(self)

    def init(self, key: Key, x0: Sample, cond: Cond = None) -> Params:
        check_key(key)
        x0 = as_samples("x0", x0)
        keys = [jax.random.fold_in(key, i) for i in range(3)]
        none = jnp.zeros(x0.shape[0], x0.dtype)
        z = jnp.zeros((x0.shape[0], self.latents), x0.dtype)
        params = {
            "generator": self.generator.init(keys[0], z, none, cond),
            "discriminator": self.discriminator.init(keys[1], x0, none, cond),
        }
        return with_power(self, keys[2], params)

    def pairs(self, params: Params, key: Key, x0: Sample, cond: Cond = None, *, index: Index) -> Pairs:
        x0 = as_samples("x0", x0)
        fake = self._samples(params, key, index, cond, x0.dtype)
        return Pairs(x0, answered("generator", fake, x0.shape))

    def logits(self, weights: Params, x: Sample, given: Any, cond: Cond = None) -> Logits:
        x = as_samples("x", x)
        return self.discriminator.apply(weights, x, jnp.zeros(x.shape[0], x.dtype), cond)

    @checked_numbers
    def generate(
        self, params: Params, key: Key, index: Index, cond: Cond = None, *, temperature: Scalar = 1.0
    ) -> Sample:
        check_nonnegative("temperature", temperature)
        return self._samples(params, key, index, cond, jnp.result_type(float), temperature)

    def decode(self, params: Params, z: Float[Array, "b k"], cond: Cond = None) -> Sample:
        """The samples G(z), [b, *d], of latents z [b, latents]; `ValueError` where z has another shape."""
        z = as_samples("z", z)
        check_latents(z, (z.shape[0], self.latents))
        x0 = self.generator.apply(part_of(params, "generator", "GAN"), z, jnp.zeros(z.shape[0], z.dtype), cond)
        return answered("generator", x0, (z.shape[0], ...))

    def _samples(self, params, key, index, cond, dtype, temperature: Scalar = 1.0):
        return self.decode(params, draw_latents(sample_keys(key, index), self.latents, dtype, temperature), cond)


def check_latents(z: Float[Array, "b k"], shape: tuple[int, int]) -> None:
    """Raises `ValueError` where latents are not [b, latents] of a GAN and its samples."""
    if z.shape != shape:
        raise ValueError(f"z: {shape} is needed, the latents={shape[1]} of the GAN for each sample, got {z.shape}")


def draw_latents(keys: Any, latents: int, dtype: Any, temperature: Scalar = 1.0) -> Float[Array, "b k"]:
    """z = temperature eps, eps ~ N(0, I), [b, latents], from a key for each sample."""
    eps = normal_like(keys, jnp.empty((keys.shape[0], latents), dtype))
    return jnp.asarray(temperature * eps, dtype)


def check_parts(gan: AbstractGAN) -> None:
    """Raises `ValueError` where a part or `spectral` of a GAN is of another kind, or it has no latent."""
    for name in ("generator", "discriminator"):
        if not isinstance(getattr(gan, name), Network):
            kind = type(getattr(gan, name)).__name__
            raise ValueError(f"{name}: a Network is needed (from_linen makes one), got {kind}")
    if not isinstance(gan.spectral, bool | np.bool_):
        raise ValueError(f"spectral: True or False is needed, got {gan.spectral!r}")
    if gan.latents < 1:
        raise ValueError(f"latents: at least one is needed, got {gan.latents}")


def check_gan(gan: Any) -> None:
    """Raises `ValueError` where something else than an `AbstractGAN` is given, such as its generator."""
    if not isinstance(gan, AbstractGAN):
        raise ValueError(f"gan: GAN(generator, discriminator, latents) is needed, got {type(gan).__name__}")


def check_batch(batch: Any) -> None:
    """Raises `ValueError` where a batch is no pair (x0 [b, *d], cond): six points would be six conditions."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return
    got = type(batch).__name__
    if isinstance(batch, tuple | list):
        got = f"{got} of {len(batch)}"
    elif hasattr(batch, "shape"):
        got = f"{batch.dtype} {batch.shape}"
    raise ValueError(f"batch: (x0, cond) is needed, cond None where there is none, got {got}")


def with_power(gan: AbstractGAN, key: Key, params: dict[str, Params]) -> dict[str, Params]:
    """Parameters with the vectors of spectral norm, a pytree of [k], where the discriminator has it."""
    return params | ({"power": init_power(key, params["discriminator"])} if gan.spectral else {})


@checked_numbers
def discriminator_loss(
    gan: AbstractGAN,
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    loss: AbstractGANLoss = NonSaturating(),
    r1: Scalar = 0.0,
    r2: Scalar = 0.0,
    every: int = 1,
    step: WholeNumber = 0,
    index: Index | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The discriminator's loss, with penalties on its gradient at data and at samples.

        mean_b[ loss(D(real), D(fake)) + r1/2 |grad D(real)|^2 + r2/2 |grad D(fake)|^2 ]

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import from_linen, gan, networks
    >>> parts = networks.Perceptron((2,), width=16, depth=1), networks.Discriminator(width=16, depth=1)
    >>> model, x0 = gan.GAN(*map(from_linen, parts), latents=4), jnp.ones((8, 2))
    >>> params = model.init(jax.random.key(0), x0)
    >>> loss, aux = discriminator_loss(model, params, jax.random.key(1), x0, r1=0.1)
    >>> sorted(aux)
    ['accuracy', 'fake', 'penalty', 'per_sample', 'real']

    Args:
      gan: the model.
      params: its parameters; no gradient reaches the generator's.
      key: for the samples; that of place i depends on (key, index_i) alone.
      x0: data [b, *d].
      cond: conditions, a pytree of [b, ...], or None.
      loss: of logits.
      r1: gamma of the penalty at data, a finite scalar, at least 0; it may be traced. A Python 0 leaves it out.
      r2: gamma of the penalty at samples, likewise.
      every: the penalties are lazy: at steps that it divides, `every` times.
      step: of training, for lazy penalties.
      index: global indices [b] of the samples (default 0 .. b - 1).

    Returns:
      The loss, a scalar, and `per_sample` [b]; `real` and `fake` [b], mean logits; `penalty` [b], what the penalties
      add; and `accuracy` [], the share of logits of the right sign, or of relativistic pairs in the right order.

    Raises:
      ValueError: a gamma is no scalar, not finite or negative, `every` is not positive, loss is something else, params
        lack a part, or a network answers another shape.

    Source: Goodfellow et al. 2014, arXiv:1406.2661; Mescheder et al. 2018, eq. 9, arXiv:1801.04406.
    """
    check_gan(gan)
    check_loss(loss)
    check_key(key)
    check_nonnegative("r1", r1)
    check_nonnegative("r2", r2)
    if every < 1:
        raise ValueError(f"every: at least 1 is needed, got {every}")
    x0 = as_samples("x0", x0)
    pairs = gan.pairs(params, key, x0, cond, index=default_index(x0.shape[0], index))
    fixed = jax.lax.stop_gradient(pairs.fake)
    judge = gan.judge(params, pairs.given, cond)
    real, fake = judge(pairs.real), judge(fixed)
    judged = loss.discriminator(real, fake)
    penalty = jnp.zeros_like(judged)
    for gamma, x in ((r1, pairs.real), (r2, fixed)):
        if not (isinstance(gamma, float | int) and gamma == 0):
            penalty = penalty + lazy(lambda x=x, gamma=gamma: gradient_penalty(judge, x, gamma), step, every=every)
    per_sample = judged + penalty
    aux = {"per_sample": per_sample, "real": mean_features(real), "fake": mean_features(fake), "penalty": penalty}
    aux["accuracy"] = loss.accuracy(real, fake)
    return jnp.mean(per_sample), aux


def generator_loss(
    gan: AbstractGAN,
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    loss: AbstractGANLoss = NonSaturating(),
    index: Index | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The generator's loss, as the discriminator judges its samples.

        mean_b loss(D(real), D(fake))        such as softplus(-D(G(z)))

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import from_linen, gan, networks
    >>> parts = networks.Perceptron((2,), width=16, depth=1), networks.Discriminator(width=16, depth=1)
    >>> model, x0 = gan.GAN(*map(from_linen, parts), latents=4), jnp.ones((8, 2))
    >>> params = model.init(jax.random.key(0), x0)
    >>> loss, aux = generator_loss(model, params, jax.random.key(1), x0, loss=gan.Relativistic())
    >>> print(loss.shape, aux["per_sample"].shape)
    () (8,)

    Args:
      gan: the model.
      params: its parameters; no gradient reaches the discriminator's.
      key: for the samples; that of place i depends on (key, index_i) alone.
      x0: data [b, *d], which relativistic losses compare with; of others their shape counts.
      cond: conditions, a pytree of [b, ...], or None.
      loss: of logits, the discriminator's.
      index: global indices [b] of the samples (default 0 .. b - 1).

    Returns:
      The loss, a scalar, and `per_sample` [b].

    Raises:
      ValueError: loss is something else, params lack a part, or a network answers another shape.

    Source: Goodfellow et al. 2014, section 3, arXiv:1406.2661; Huang et al. 2024 (R3GAN), eq. 3, arXiv:2501.05441.
    """
    check_gan(gan)
    check_loss(loss)
    check_key(key)
    x0 = as_samples("x0", x0)
    trained = part_of(params, "generator", "GAN")
    frozen = {**jax.lax.stop_gradient(params), "generator": trained}
    pairs = gan.pairs(frozen, key, x0, cond, index=default_index(x0.shape[0], index))
    judge = gan.judge(frozen, pairs.given, cond)
    per_sample = loss.generator(judge(pairs.real), judge(pairs.fake))
    return jnp.mean(per_sample), {"per_sample": per_sample}


@checked_numbers
def generate_samples(
    gan: AbstractGAN, params: Params, key: Key, index: Index, cond: Cond = None, *, temperature: Scalar = 1.0
) -> Sample:
    """Samples of the model, [n, *d].

        x0 = G(z, cond),   z ~ temperature N(0, I)        of a denoising GAN K steps of this kind

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import from_linen, gan, networks
    >>> generator = from_linen(networks.Perceptron((2,), width=16, depth=1, num_classes=3))
    >>> discriminator = from_linen(networks.Discriminator(width=16, depth=1, num_classes=3))
    >>> model, labels = gan.GAN(generator, discriminator, latents=4), jnp.arange(6) % 3
    >>> params = model.init(jax.random.key(0), jnp.ones((6, 2)), labels)
    >>> generate_samples(model, params, jax.random.key(1), jnp.arange(6), labels).shape
    (6, 2)

    Args:
      gan: the model.
      params: its parameters.
      key: sample i depends on (key, index_i) alone.
      index: global indices [n]; their number is that of the samples.
      cond: conditions, a pytree of [n, ...], or None.
      temperature: multiplies the latents z; below 1 samples are more typical and less diverse.

    Returns:
      Samples [n, *d].

    Raises:
      ValueError: indices that are none, params without a generator, or a temperature that is no number, not finite or
        below 0.

    Source: Goodfellow et al. 2014, arXiv:1406.2661; Xiao et al. 2022, arXiv:2112.07804.
    """
    check_gan(gan)
    check_key(key)
    check_nonnegative("temperature", temperature)
    return gan.generate(params, key, as_index(index), cond, temperature=temperature)


@checked_numbers
def training_losses(
    gan: AbstractGAN,
    *,
    loss: AbstractGANLoss = NonSaturating(),
    r1: Gamma = 0.0,
    r2: Gamma = 0.0,
    every: int = 1,
) -> Mapping[str, Callable[..., tuple[Array, dict[str, Array]]]]:
    """The losses of one train step, by the entry of params that each trains, in order.

        "discriminator", "generator"     each with an optimiser
        "power"                          with spectral norm alone, by `optax.sgd(1.0)`: its step is a power iteration

        adam, sgd = optax.adam(1e-3, b1=0.0), optax.sgd(1.0)
        txs = {"discriminator": adam, "generator": adam, "power": sgd}
        losses = gan.training_losses(model, loss=gan.Hinge(), r1=0.1, every=16)
        objectives = [training.Objective(loss_fn, txs[name], name) for name, loss_fn in losses.items()]
        step = training.make_train_step(objectives, ema=training.make_ema(0.999))

    In this order the generator moves against the discriminator that has moved; with `simultaneous=True` of
    `make_train_step` both move from where they are. `Objective`'s `times` gives the discriminator several updates.
    A batch is `(x0, cond)`, as sources make it: of data with labels the labels are given to both networks, and
    `(x0, None)` trains a GAN without them.

    >>> from diffjax import from_linen, gan, networks
    >>> parts = networks.Perceptron((2,)), networks.Discriminator()
    >>> list(training_losses(gan.GAN(*map(from_linen, parts), latents=4)))
    ['discriminator', 'generator']

    Args:
      gan: the model.
      loss: of logits.
      r1: gamma of the penalty at data, a scalar or a schedule `step -> gamma`.
      r2: gamma of the penalty at samples, likewise.
      every: the penalties are lazy: at steps that it divides, `every` times.

    Returns:
      Name -> `(params, (x0 [b, *d], cond), context) -> (loss, aux)`; aux holds scalars.

    Raises:
      ValueError: gan or loss is something else, a gamma is no scalar, not finite or negative, or `every` is not
        positive.

    Source: Goodfellow et al. 2014, algorithm 1, arXiv:1406.2661.
    """
    check_gan(gan)
    check_loss(loss)
    if every < 1:
        raise ValueError(f"every: at least 1 is needed, got {every}")
    for name, gamma in (("r1", r1), ("r2", r2)):
        if not callable(gamma):
            check_nonnegative(name, gamma)
    at = lambda gamma, step: gamma(step) if callable(gamma) else gamma

    def judged(params: Params, batch: Any, context: Any) -> tuple[Array, dict[str, Array]]:
        check_batch(batch)
        x0, cond = batch
        gammas = {"r1": at(r1, context.step), "r2": at(r2, context.step)}
        given = {"every": every, "step": context.step, "index": context.index}
        value, aux = discriminator_loss(gan, params, context.key, x0, cond, loss=loss, **gammas, **given)
        return value, {name: jnp.mean(aux[name]) for name in ("accuracy", "real", "fake", "penalty")}

    def fooled(params: Params, batch: Any, context: Any) -> tuple[Array, dict[str, Array]]:
        check_batch(batch)
        return generator_loss(gan, params, context.key, *batch, loss=loss, index=context.index)[0], {}

    def iterated(params: Params, batch: Any, context: Any) -> tuple[Array, dict[str, Array]]:
        """Its gradient is u minus the vector after one iteration, so that a step of size 1 is that iteration."""
        after = spectral_norm(params["discriminator"], params["power"])[1]  # a constant to the gradient
        moved = jax.tree.map(lambda u, new: 0.5 * jnp.sum((u - new) ** 2), params["power"], after)
        return jnp.sum(jnp.stack(jax.tree.leaves(moved))), {}

    return {"discriminator": judged, "generator": fooled} | ({"power": iterated} if gan.spectral else {})
