"""Losses of a discriminator and of the generator that it judges, as functions of logits.

    a = D(real), b = D(fake)            discriminator                            generator
    non-saturating                      softplus(-a) + softplus(b)               softplus(-b)
    hinge                               max(0, 1 - a) + max(0, 1 + b)            -b
    relativistic pairs                  softplus(-(a - b))                       softplus(-(b - a))

With data of density p and samples of density q the best discriminator of the first is D* = log p/q, where its loss is
2 log 2 - 2 JS(p, q); that of the third is log p/q up to a constant, since only differences of logits count. Near the
equilibrium a small change of the generator is judged by the slope of the loss at logit 0: `slope`.

Source: Goodfellow et al. 2014, section 3, arXiv:1406.2661; Lim & Ye 2017 (Geometric GAN), hinge, arXiv:1705.02894;
Jolicoeur-Martineau 2019 (relativistic pairs), arXiv:1807.00734; Huang et al. 2024 (R3GAN), section 2, arXiv:2501.05441.
"""

import abc
from typing import ClassVar, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffjax._arrays import as_samples, mean_features

Logits: TypeAlias = Float[Array, "b *m"]
"""What a discriminator gives, positive for data: one number a sample, or several whose losses are averaged."""


class AbstractGANLoss(eqx.Module):
    """A pair of losses, each [b], of logits [b, *m]; means over m.

    >>> import jax.numpy as jnp
    >>> from diffjax import gan
    >>> real, fake = jnp.array([[2.0], [-1.0]]), jnp.array([[-2.0], [-3.0]])
    >>> for loss in (gan.NonSaturating(), gan.Hinge(), gan.Relativistic()):
    ...     print(loss.discriminator(real, fake).shape, loss.accuracy(real, fake), loss.slope)
    (2,) 0.75 0.5
    (2,) 0.75 1.0
    (2,) 1.0 0.5

    `slope` is minus the derivative of the generator's loss by its logit where all logits are 0.
    """

    slope: eqx.AbstractClassVar[float]

    @abc.abstractmethod
    def discriminator(self, real: Logits, fake: Logits) -> Float[Array, " b"]:
        """The discriminator's loss [b], of its logits for data and for samples, each [b, *m]."""

    @abc.abstractmethod
    def generator(self, real: Logits, fake: Logits) -> Float[Array, " b"]:
        """The generator's loss [b], of the same logits [b, *m]."""

    @abc.abstractmethod
    def accuracy(self, real: Logits, fake: Logits) -> Float[Array, ""]:
        """The share [] of logits [b, *m] that the discriminator gets right; 1/2 is chance."""


class NonSaturating(AbstractGANLoss):
    """Logistic losses, the generator's of the label that it wants: its gradient does not vanish where it is found out.

        softplus(-D(real)) + softplus(D(fake)),        softplus(-D(fake))

    >>> import jax.numpy as jnp
    >>> print(NonSaturating().generator(jnp.zeros((1, 1)), jnp.zeros((1, 1))))
    [0.6931472]

    Raises:
      ValueError: logits that are no floating-point numbers, or of two shapes.

    Source: Goodfellow et al. 2014, section 3, arXiv:1406.2661.
    """

    slope: ClassVar[float] = 0.5

    def discriminator(self, real: Logits, fake: Logits) -> Float[Array, " b"]:
        real, fake = _pair(real, fake)
        return mean_features(jax.nn.softplus(-real) + jax.nn.softplus(fake))

    def generator(self, real: Logits, fake: Logits) -> Float[Array, " b"]:
        return mean_features(jax.nn.softplus(-_pair(real, fake)[1]))

    def accuracy(self, real: Logits, fake: Logits) -> Float[Array, ""]:
        return _right_signs(real, fake)


class Hinge(AbstractGANLoss):
    """The hinge loss, usually with spectral norm: logits beyond 1 on the right side cost nothing.

        max(0, 1 - D(real)) + max(0, 1 + D(fake)),        -D(fake)

    >>> import jax.numpy as jnp
    >>> print(Hinge().discriminator(jnp.array([[3.0], [0.5]]), jnp.array([[-3.0], [-0.5]])))
    [0. 1.]

    Raises:
      ValueError: logits that are no floating-point numbers, or of two shapes.

    Source: Lim & Ye 2017 (Geometric GAN), section 3, arXiv:1705.02894; Miyato et al. 2018, eqs. 16-17,
    arXiv:1802.05957.
    """

    slope: ClassVar[float] = 1.0

    def discriminator(self, real: Logits, fake: Logits) -> Float[Array, " b"]:
        real, fake = _pair(real, fake)
        return mean_features(jax.nn.relu(1 - real) + jax.nn.relu(1 + fake))

    def generator(self, real: Logits, fake: Logits) -> Float[Array, " b"]:
        return mean_features(-_pair(real, fake)[1])

    def accuracy(self, real: Logits, fake: Logits) -> Float[Array, ""]:
        return _right_signs(real, fake)


class Relativistic(AbstractGANLoss):
    """Each sample against an item of data, the one at its place in the batch: which of the two is the real one?

        softplus(D(fake) - D(real)),        softplus(D(real) - D(fake))

    A generator cannot win by moving all samples to where one half of the data is, as it can where data and samples are
    judged apart.

    >>> import jax.numpy as jnp
    >>> print(Relativistic().generator(jnp.array([[7.0]]), jnp.array([[7.0]])))  # only the difference counts
    [0.6931472]

    Raises:
      ValueError: logits that are no floating-point numbers, or of two shapes.

    Source: Jolicoeur-Martineau 2019, arXiv:1807.00734; Huang et al. 2024 (R3GAN), section 2, arXiv:2501.05441.
    """

    slope: ClassVar[float] = 0.5

    def discriminator(self, real: Logits, fake: Logits) -> Float[Array, " b"]:
        real, fake = _pair(real, fake)
        return mean_features(jax.nn.softplus(fake - real))

    def generator(self, real: Logits, fake: Logits) -> Float[Array, " b"]:
        real, fake = _pair(real, fake)
        return mean_features(jax.nn.softplus(real - fake))

    def accuracy(self, real: Logits, fake: Logits) -> Float[Array, ""]:
        real, fake = _pair(real, fake)  # the sign of one logit says nothing: a constant added to all costs nothing
        return _share(real > fake)


def _pair(real, fake):
    """(real, fake) of one shape."""
    real = as_samples("real", real)
    return real, as_samples("fake", fake, real.shape)


def _right_signs(real: Logits, fake: Logits) -> Float[Array, ""]:
    real, fake = _pair(real, fake)
    return 0.5 * (_share(real > 0) + _share(fake < 0))


def _share(right: Bool[Array, "b *m"]) -> Float[Array, ""]:
    return jnp.mean(right, dtype=jnp.result_type(float))


def check_loss(loss: object) -> None:
    """Raises `ValueError` where something else than an `AbstractGANLoss` is given, such as its class or its name."""
    if not isinstance(loss, AbstractGANLoss):
        raise ValueError(f"loss: a loss of logits is needed, such as NonSaturating() or Hinge(), got {loss!r}")
