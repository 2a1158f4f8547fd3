"""Toy densities in the plane, each a source of fresh draws, each with mean 0 and mean square 1 a coordinate.

    mixture        Gaussians on a ring       log p known, moments exposed: an exact denoiser follows from them
    checkerboard   every other square        log p known
    two_moons      two half circles          no density without noise
    swiss_roll     a spiral                  no density without noise

Centres and scales below are exact moments of the noiseless curves, not estimates.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffjax._numbers import checked_numbers
from diffjax.data._source import Batch, Part, Source, check_position, generator, part_rows, whole


@dataclass(frozen=True, eq=False)
class Mixture:
    """A source of draws from sum_k weights_k N(means_k, covariances_k); cond is the component, int32 [size].

    Its exact denoiser is that of `diffjax.GaussianMixture(toy.means, toy.covariances, toy.weights)`.

    Attributes:
      means: [k, 2].
      covariances: [k, 2, 2].
      weights: [k], adding up to one.
    """

    means: np.ndarray
    covariances: np.ndarray
    weights: np.ndarray

    @checked_numbers
    def __call__(self, seed: int, step: int, size: int, *, part: Part = (0, 1)) -> Batch:
        check_position(seed, step, size)
        rows, rng = part_rows(size, part), generator(seed, step)
        component = rng.choice(len(self.weights), size, p=self.weights)
        root = np.linalg.cholesky(self.covariances)[component]
        x = self.means[component] + np.einsum("nij,nj->ni", root, rng.normal(size=(size, 2)))
        return x[rows].astype(np.float32), component[rows].astype(np.int32)

    def log_prob(self, x: Float[Array, "b 2"]) -> Float[Array, " b"]:
        """log p(x) in nats, [b]."""
        root = np.linalg.cholesky(self.covariances)
        z = jnp.einsum("kij,bkj->bki", np.linalg.inv(root), x[:, None] - self.means)
        log_det = np.sum(np.log(np.diagonal(root, axis1=1, axis2=2)), axis=1)
        log_each = -0.5 * jnp.sum(z**2, axis=-1) - math.log(2 * math.pi) - log_det + np.log(self.weights)
        return jax.nn.logsumexp(log_each, axis=1).astype(x.dtype)


@checked_numbers
def mixture(*, components: int = 8, std: float = 0.1) -> Mixture:
    """Equal round Gaussians on a ring of radius sqrt(2 (1 - std^2)), so that each coordinate has variance 1.

    >>> from diffjax import data
    >>> source = data.mixture(components=8)
    >>> x, _ = source(seed=0, step=0, size=4)
    >>> x.shape, source.means.shape
    ((4, 2), (8, 2))

    Args:
      components: number of Gaussians, at least 3 (for fewer, the two coordinates would differ in variance).
      std: standard deviation of each Gaussian, in (0, 1).

    Raises:
      ValueError: an argument out of range.
    """
    if components < 3:
        raise ValueError(f"components: at least 3 are needed, got {components}")
    if not 0 < std < 1:
        raise ValueError(f"std: a number in (0, 1) is needed, got {std}")
    angle = 2 * np.pi * np.arange(components) / components
    means = math.sqrt(2 * (1 - std**2)) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    covariances = np.broadcast_to(std**2 * np.eye(2), (components, 2, 2))
    return Mixture(means, covariances, np.full(components, 1 / components))


@checked_numbers
@dataclass(frozen=True)
class Checkerboard:
    """A source of draws, uniform on every other square of a board over [-sqrt 3, sqrt 3]^2; cond is None.

    Attributes:
      cells: squares along a side, even, so that the marginals are uniform with variance 1.
    """

    cells: int = 4

    @checked_numbers
    def __call__(self, seed: int, step: int, size: int, *, part: Part = (0, 1)) -> Batch:
        check_position(seed, step, size)
        rows, rng = part_rows(size, part), generator(seed, step)
        row = rng.integers(self.cells, size=size)
        column = 2 * rng.integers(self.cells // 2, size=size) + row % 2
        unit = (np.stack([column, row], axis=1) + rng.random((size, 2))) / self.cells
        return (math.sqrt(3) * (2 * unit - 1))[rows].astype(np.float32), None

    def log_prob(self, x: Float[Array, "b 2"]) -> Float[Array, " b"]:
        """log p(x) in nats, [b]: -log 6 on the squares, which cover half of the area 12; -inf elsewhere."""
        place = jnp.floor((x / math.sqrt(3) + 1) / 2 * self.cells)
        filled = (jnp.sum(place, axis=-1) % 2 == 0) & jnp.all((place >= 0) & (place < self.cells), axis=-1)
        return jnp.where(filled, -math.log(6), -jnp.inf).astype(x.dtype)


@checked_numbers
def checkerboard(*, cells: int = 4) -> Checkerboard:
    """A checkerboard, uniform on every other of `cells` x `cells` squares.

    >>> from diffjax import data
    >>> x, cond = data.checkerboard()(seed=0, step=0, size=4)
    >>> x.shape, cond
    ((4, 2), None)

    Args:
      cells: squares along a side, an even number.

    Raises:
      ValueError: cells is not even, or not positive.
    """
    if cells < 2 or cells % 2:
        raise ValueError(f"cells: an even number is needed, got {cells}")
    return Checkerboard(cells)


@checked_numbers
def two_moons(*, noise: float = 0.05) -> Source:
    """Two interleaved half circles of radius 1 with Gaussian noise, standardised; the label is the moon, 0 or 1.

    (cos a, sin a) and (1 - cos a, 1/2 - sin a), a uniform on [0, pi]: means 1/2, 1/4, variances 3/4, 9/16 - 1/pi.

    >>> from diffjax import data
    >>> x, _ = data.two_moons()(seed=0, step=0, size=4)
    >>> x.shape
    (4, 2)

    Args:
      noise: standard deviation of the noise before standardising, not negative.
    """
    centre, spread = (1 / 2, 1 / 4), 3 / 4 + 9 / 16 - 1 / math.pi

    def draw(rng, size):
        moon, angle = rng.integers(2, size=size), rng.uniform(0, np.pi, size)
        upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return np.where(moon[:, None] == 0, upper, (1, 1 / 2) - upper), moon.astype(np.int32)

    return _curve(draw, centre, spread, noise)


@checked_numbers
def swiss_roll(*, noise: float = 0.3) -> Source:
    """A spiral t (cos t, sin t), t uniform on [3 pi/2, 9 pi/2], with Gaussian noise, standardised.

    cond is None. Means 2 and 2/(3 pi), mean square radius 39 pi^2/4.

    >>> from diffjax import data
    >>> x, _ = data.swiss_roll()(seed=0, step=0, size=4)
    >>> x.shape
    (4, 2)

    Args:
      noise: standard deviation of the noise before standardising, not negative; the roll is then about 28 wide.
    """
    centre = (2.0, 2 / (3 * math.pi))
    spread = 39 * math.pi**2 / 4 - centre[0] ** 2 - centre[1] ** 2

    def draw(rng, size):
        t = rng.uniform(1.5 * np.pi, 4.5 * np.pi, size)
        return t[:, None] * np.stack([np.cos(t), np.sin(t)], axis=1), None

    return _curve(draw, centre, spread, noise)


def _curve(draw, centre, spread, noise) -> Source:
    """Points of a curve with the given mean and total variance, plus noise, scaled to variance 1 a coordinate."""
    if not noise >= 0:
        raise ValueError(f"noise: must not be negative, got {noise}")
    scale = math.sqrt(spread / 2 + noise**2)

    def source(seed: int, step: int, size: int) -> Batch:
        check_position(seed, step, size)
        rng = generator(seed, step)
        x, cond = draw(rng, size)
        x = (x + noise * rng.normal(size=x.shape) - centre) / scale
        return x.astype(np.float32), cond

    return whole(source)
