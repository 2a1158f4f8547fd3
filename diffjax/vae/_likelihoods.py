"""Decoders' likelihoods p(x | z) in nats: what the numbers that a decoder network gives mean.

    GaussianLikelihood     N(x; y, sigma^2 I),  sigma learned (one number) or fixed           continuous data
    DiscretisedLogistic    P(x) = F((x + h - y)/s) - F((x - h - y)/s),  F the sigmoid         8-bit data
    Bernoulli              P(x = high) = F(y)                                                 binary data, and no other
    Autoregressive         prod_i p(x_i | x_<i, y) by a network of masked convolutions        any of these a pixel

The decoder's noise decides what a VAE learns: with data in [-1, 1] a fixed sigma = 1 is a large beta. The learned
sigma^2 has its optimum at the mean squared error.

Source: Kingma & Welling 2014, appendix C; sigma: Rybkin et al. 2021 (sigma-VAE), section 3; discretised logistic:
Kingma et al. 2016 (IAF), section 5; Salimans et al. 2017 (PixelCNN++), eq. 2; autoregressive decoders: Gulrajani et al.
2017 (PixelVAE).
"""

import abc
from typing import ClassVar, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from diffjax._arrays import (
    accumulator_dtype,
    as_samples,
    at_once,
    check,
    check_key,
    is_concrete,
    nan_unless,
    normal_like,
    part_of,
    sum_features,
    values_at_once,
)
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import Key, Network, Params, Sample, Scalar
from diffjax.losses import check_levels
from diffjax.losses._elbo import OFF_LEVEL
from diffjax.vae._gaussian import HALF_LOG_TAU, LOG_STD_RANGE

Output: TypeAlias = Float[Array, "b *y"]
"""What a decoder network gives for a batch."""


class AbstractLikelihood(eqx.Module):
    """p(x0 | y), where y is what a decoder network gives for z.

    `outputs` is how many numbers y has for each feature of x0: y is [b, ..., outputs c] for x0 [b, ..., c].
    """

    outputs: eqx.AbstractClassVar[int]

    @abc.abstractmethod
    def init(self, key: Key, y: Output, x0: Sample) -> Params:
        """The likelihood's own parameters, a pytree, which may be empty."""

    @abc.abstractmethod
    def log_prob(self, params: Params, y: Output, x0: Sample, *, key: Key | None = None) -> Float[Array, " b"]:
        """log p(x0 | y) in nats, [b], for y [b, ..., outputs c] and x0 [b, ..., c]; a key turns dropout on."""

    @abc.abstractmethod
    def mean(self, params: Params, y: Output) -> Sample:
        """The mean of p(x0 | y), [b, ..., c]; where a docstring says so, a value near it."""

    @abc.abstractmethod
    def sample(self, params: Params, keys: Shaped[Array, "b *k"], y: Output) -> Sample:
        """A draw of p(x0 | y), [b, ..., c], from keys [b]."""


def _nan_unless_all(fits, nats):
    """nats [b], NaN for a sample of which a feature does not fit, [b, *d]."""
    return jax.vmap(nan_unless)(jnp.all(fits.reshape(fits.shape[0], -1), axis=1), nats)


def _fitting(y, x0, outputs):
    """(y, x0) of shapes that fit."""
    x0 = as_samples("x0", x0)
    return as_samples("y", y, (*x0.shape[:-1], outputs * x0.shape[-1])), x0


@checked_numbers
class GaussianLikelihood(AbstractLikelihood):
    """N(x0; y, std^2 I), a density, with one standard deviation for all features.

    Attributes:
      std: fixed, a positive scalar; None: learned, as `params["log_std"]`, a scalar that starts at 0.

    Raises:
      ValueError: std is not positive (a singular scale).
    """

    outputs: ClassVar[int] = 1
    std: Float[Array, ""] | None

    def __init__(self, std: Scalar | None = None):
        self.std = None if std is None else as_scalar("std", std)
        if self.std is not None:
            with at_once(std):
                check((self.std > 0) & jnp.isfinite(self.std), f"std: must be positive, got {std}")

    def init(self, key: Key, y: Output, x0: Sample) -> Params:
        return {} if self.std is not None else {"log_std": jnp.zeros(())}

    def log_prob(self, params: Params, y: Output, x0: Sample, *, key: Key | None = None) -> Float[Array, " b"]:
        y, x0 = _fitting(y, x0, self.outputs)
        log_std = self._log_std(params)
        return -sum_features(0.5 * ((x0 - y) * jnp.exp(-log_std)) ** 2 + log_std + HALF_LOG_TAU)

    def mean(self, params: Params, y: Output) -> Sample:
        return as_samples("y", y)

    def sample(self, params: Params, keys: Shaped[Array, "b *k"], y: Output) -> Sample:
        y = as_samples("y", y)
        return y + jnp.exp(self._log_std(params)) * normal_like(keys, y)

    def _log_std(self, params):
        if self.std is not None:
            return jnp.log(self.std)
        return jnp.clip(part_of(params, "log_std", "likelihood"), *LOG_STD_RANGE)


@checked_numbers
class DiscretisedLogistic(AbstractLikelihood):
    """The probability of a level x0 under a logistic distribution of location and scale, rounded to the levels.

    The lowest level has all that lies below it, the highest all that lies above: probabilities sum to 1. y has
    locations and log scales, [b, ..., 2 c]. Under jit, where values cannot be looked at, the result is NaN for a sample
    with a value that is no level.

    >>> import jax.numpy as jnp
    >>> levels = jnp.linspace(-1.0, 1.0, 4)[:, None]
    >>> y = jnp.broadcast_to(jnp.array([0.3, -1.0]), (4, 2))
    >>> nats = DiscretisedLogistic(levels=4).log_prob({}, y, levels)
    >>> round(float(jnp.exp(nats).sum()), 6)
    1.0

    Attributes:
      levels: how many, at least two; 256 for 8-bit images.
      low: the lowest level's value.
      high: the highest level's, more than low; the others lie evenly between.

    Raises:
      ValueError: fewer than two levels, high is not above low, or a value of x0 is not a level (outside jit).

    Source: Salimans et al. 2017 (PixelCNN++), eq. 2.
    """

    outputs: ClassVar[int] = 2
    levels: int = eqx.field(static=True, default=256)
    low: float = eqx.field(static=True, default=-1.0)
    high: float = eqx.field(static=True, default=1.0)

    @values_at_once
    def __check_init__(self):
        check(self.levels >= 2, f"levels: at least two are needed, got {self.levels}")
        check(self.high > self.low, f"high: must be more than low = {self.low}, got {self.high}")

    def init(self, key: Key, y: Output, x0: Sample) -> Params:
        return {}

    def log_prob(self, params: Params, y: Output, x0: Sample, *, key: Key | None = None) -> Float[Array, " b"]:
        y, x0 = _fitting(y, x0, self.outputs)
        check_levels(x0, self.levels, self.low, self.high)
        location, log_scale = self._parts(y)
        step, inverse = self._step(), jnp.exp(-log_scale)
        # Edges by whole numbers: two levels have the same one between them, whatever the dtype of x0 has rounded off.
        place = (x0.astype(accumulator_dtype(x0.dtype)) - self.low) / step
        level = jnp.clip(jnp.round(place), 0, self.levels - 1)
        above, below = ((self.low + step * (level + half) - location) * inverse for half in (0.5, -0.5))
        # F(a) - F(b) = F(a) F(-b) (1 - exp(b - a)), of which no factor loses digits in the tails.
        first, last = level == 0, level == self.levels - 1
        lower = jnp.where(first, 0.0, jax.nn.log_sigmoid(-below))
        upper = jnp.where(last, 0.0, jax.nn.log_sigmoid(above))
        width = jnp.where(first | last, 0.0, jnp.log(-jnp.expm1(-step * inverse)))
        on_level = jnp.abs(place - level) < OFF_LEVEL
        return _nan_unless_all(on_level, sum_features(lower + upper + width))

    def mean(self, params: Params, y: Output) -> Sample:
        """The locations, within low and high: the mean but for what is rounded and cut off."""
        return jnp.clip(self._parts(as_samples("y", y))[0], self.low, self.high)

    def sample(self, params: Params, keys: Shaped[Array, "b *k"], y: Output) -> Sample:
        location, log_scale = self._parts(as_samples("y", y))
        noise = jax.vmap(lambda key: jax.random.logistic(key, location.shape[1:], location.dtype))(keys)
        place = (location + jnp.exp(log_scale) * noise - self.low) / self._step()
        return self.low + self._step() * jnp.clip(jnp.round(place), 0, self.levels - 1)

    def _step(self):
        return (self.high - self.low) / (self.levels - 1)

    def _parts(self, y):
        location, log_scale = jnp.split(y, 2, axis=-1)
        return location, jnp.clip(log_scale, *LOG_STD_RANGE)


@checked_numbers
class Bernoulli(AbstractLikelihood):
    """P(x0 = high) = 1/(1 + exp(-y)), feature by feature, for data that have two values.

    Grey images are refused: their cross entropy is no log likelihood. Under jit, where values cannot be looked at, the
    result is NaN for a sample with any other value.

    Attributes:
      low: one of the two values.
      high: the other.

    Raises:
      ValueError: a value of x0 is neither (outside jit).
    """

    outputs: ClassVar[int] = 1
    low: float = eqx.field(static=True, default=0.0)
    high: float = eqx.field(static=True, default=1.0)

    @values_at_once
    def __check_init__(self):
        check(self.high > self.low, f"high: must be more than low = {self.low}, got {self.high}")

    def init(self, key: Key, y: Output, x0: Sample) -> Params:
        return {}

    def log_prob(self, params: Params, y: Output, x0: Sample, *, key: Key | None = None) -> Float[Array, " b"]:
        y, x0 = _fitting(y, x0, self.outputs)
        if is_concrete(x0):
            values = np.asarray(x0).ravel()
            other = (values != self.low) & (values != self.high)
            check(
                ~other,
                f"x0: a Bernoulli likelihood needs data that are {self.low:g} or {self.high:g}, got "
                f"{values[np.argmax(other)]}; binarise them, or take DiscretisedLogistic for grey images",
            )
        binary = (x0 == self.low) | (x0 == self.high)
        nats = sum_features(jax.nn.log_sigmoid(jnp.where(x0 == self.high, y, -y)))
        return _nan_unless_all(binary, nats)

    def mean(self, params: Params, y: Output) -> Sample:
        return self.low + (self.high - self.low) * jax.nn.sigmoid(as_samples("y", y))

    def sample(self, params: Params, keys: Shaped[Array, "b *k"], y: Output) -> Sample:
        y = as_samples("y", y)
        noise = jax.vmap(lambda key: jax.random.logistic(key, y.shape[1:], y.dtype))(keys)
        return jnp.where(noise < y, self.high, self.low).astype(y.dtype)


@checked_numbers
class Autoregressive(AbstractLikelihood):
    """prod_i p(x_i | x_<i, y) over the pixels of images in raster order: a decoder that can do without z.

    The network sees x0 and y at once and gives the numbers of pixel i from pixels before i alone; the channels of a
    pixel are independent given those. Sampling takes one evaluation a pixel.

    Attributes:
      network: `(x0 [b, h, w, c], c_noise, y) -> [b, h, w, outputs c]`, causal, such as `from_linen(MaskedDecoder())`.
      each: the likelihood of one pixel.
      shape: (h, w, c) of the images.

    Raises:
      ValueError: a part is of another kind, or the shape is not that of images.

    Source: van den Oord et al. 2016 (PixelCNN); Gulrajani et al. 2017 (PixelVAE).
    """

    outputs: ClassVar[int] = 0  # y is a vector that conditions the network, of whatever size
    network: Network = eqx.field(static=True)
    each: AbstractLikelihood
    shape: tuple[int, ...] = eqx.field(static=True)

    def __check_init__(self):
        if not isinstance(self.network, Network):
            raise ValueError(f"network: Network is needed (from_linen makes one), got {type(self.network).__name__}")
        if not isinstance(self.each, AbstractLikelihood) or not self.each.outputs:
            raise ValueError(f"each: the likelihood of one pixel is needed, got {type(self.each).__name__}")
        if len(self.shape) != 3:
            raise ValueError(f"shape: (height, width, channels) is needed, got {self.shape}")

    def init(self, key: Key, y: Output, x0: Sample) -> Params:
        check_key(key)
        x0, y = as_samples("x0", x0), as_samples("y", y)
        return {
            "network": self.network.init(jax.random.fold_in(key, 0), x0, jnp.zeros(x0.shape[0]), y),
            "each": self.each.init(jax.random.fold_in(key, 1), y, x0),
        }

    def log_prob(self, params: Params, y: Output, x0: Sample, *, key: Key | None = None) -> Float[Array, " b"]:
        x0 = as_samples("x0", x0)
        x0, y = as_samples("x0", x0, (x0.shape[0], *self.shape)), as_samples("y", y)
        return self.each.log_prob(part_of(params, "each", "likelihood"), self._numbers(params, y, x0, key), x0)

    def mean(self, params: Params, y: Output) -> Sample:
        """Pixel after pixel, each at its mean given those before."""
        return self._pixel_by_pixel(
            params, y, lambda i, numbers: self.each.mean(part_of(params, "each", "likelihood"), numbers)
        )

    def sample(self, params: Params, keys: Shaped[Array, "b *k"], y: Output) -> Sample:
        def draw(i, numbers):
            own = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
            return self.each.sample(part_of(params, "each", "likelihood"), own, numbers)

        return self._pixel_by_pixel(params, y, draw)

    def _numbers(self, params, y, x0, key=None):
        return self.network.apply(part_of(params, "network", "likelihood"), x0, jnp.zeros(x0.shape[0]), y, key=key)

    def _pixel_by_pixel(self, params, y, choose):
        height, width, channels = self.shape
        y = as_samples("y", y)

        def fill(i, x0):
            numbers = self._numbers(params, y, x0).reshape(x0.shape[0], height * width, -1)
            pixel = choose(i, jax.lax.dynamic_index_in_dim(numbers, i, 1, keepdims=False))
            flat = x0.reshape(x0.shape[0], height * width, channels)
            return jax.lax.dynamic_update_index_in_dim(flat, pixel.astype(x0.dtype), i, 1).reshape(x0.shape)

        return jax.lax.fori_loop(0, height * width, fill, jnp.zeros((y.shape[0], *self.shape), y.dtype))
