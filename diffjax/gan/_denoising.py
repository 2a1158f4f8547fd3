"""The denoising diffusion GAN: a few large steps, each by a generator that knows what it cannot know.

    x0 --> xs --one step forward--> xt                     real: (xs | xt, t)
    xt, t, z --G--> x0' --q(xs | xt, x0')--> xs'           fake: (xs' | xt, t)

Over a small step q(xs | xt) is Gaussian, and the mean of x0 is enough; over a large one it is not. The generator draws
x0' from q(x0 | xt) by its latent z, so that K = 1 to 8 steps will do. With a deterministic x0 the variance of xs | xt
lacks c_x0^2 var(x0 | xt), all of it in the last step, to t = 0.

Source: Xiao, Kreis & Vahdat 2022 (Tackling the generative learning trilemma with denoising diffusion GANs), eqs. 3-6
and algorithm 1, arXiv:2112.07804.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffjax._arrays import (
    answered,
    as_samples,
    check_key,
    check_shape,
    check_time,
    check_times,
    default_index,
    expand,
    is_concrete,
    normal_like,
    part_of,
    sample_keys,
    time_dtype,
    values_at_once,
)
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import (
    Cond,
    Denoiser,
    FlowMap,
    Grid,
    GridLike,
    Index,
    Key,
    Network,
    Params,
    Sample,
    Scalar,
    Time,
    Weights,
)
from diffjax.gan._losses import Logits
from diffjax.gan._model import AbstractGAN, Pairs, check_latents, check_parts, draw_latents, with_power
from diffjax.gan._penalties import check_nonnegative
from diffjax.networks import WithLatent
from diffjax.parameterisation._clock import clock_of_logsnr
from diffjax.process import AbstractGaussianProcess
from diffjax.process._flow_map import is_flow_map
from diffjax.process._gaussian import posterior_mean_std, prior
from diffjax.samplers import AbstractStepper, ScheduleOnGrid, Step
from diffjax.samplers._base import sample
from diffjax.samplers._ddim import Coefficients, ddim_weights

LatentGenerator: TypeAlias = Callable[[Sample, Time, Float[Array, "b k"]], Sample]
"""`G(xt [b, *d], t [] or [b], z [b, latents]) -> x0 [b, *d]`, a draw of q(x0 | xt) where z ~ N(0, I)."""


@checked_numbers
class NetworkGenerator(eqx.Module):
    """`G(xt [b, *d], t [] or [b], z [b, latents]) -> x0 [b, *d]` of a network; made by `DenoisingGAN.conditioned`.

        x0 = network(xt/sqrt(alpha^2 + sigma^2), -logsnr/8, WithLatent(z, cond))

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import from_linen, gan, networks
    >>> parts = networks.LatentNetwork(networks.MLP(width=16, depth=1)), networks.Discriminator(width=16, depth=1)
    >>> process, ts = dj.Cosine(), [1.0, 0.5, 0.0]
    >>> model = gan.DenoisingGAN(*map(from_linen, parts), process, ts, (2,), latents=4)
    >>> generator = model.conditioned(model.init(jax.random.key(0), jnp.ones((3, 2))))
    >>> xT = dj.prior(jax.random.key(1), process, (3, 2))
    >>> generator(xT, 1.0, jnp.zeros((3, 4))).shape
    (3, 2)
    >>> dj.sample(jax.random.key(2), process, generator, xT, ts, gan.LatentAncestral(4)).shape
    (3, 2)

    Attributes:
      network: of the generator.
      process: the forward process.
      params: the network's parameters, a pytree of arrays [*d].
      cond: conditions, a pytree of [b, ...], or None.
      latents: how many numbers z has.

    Raises:
      ValueError: z is missing or has another length, or the network answers another shape.

    Source: Xiao et al. 2022, section 3.2, arXiv:2112.07804.
    """

    network: Network = eqx.field(static=True)
    process: AbstractGaussianProcess
    params: Any
    cond: Any
    latents: int = eqx.field(static=True)

    def per_sample_fields(self) -> tuple[str, ...]:
        """The fields whose leaves have the batch axis, [b, ...]."""
        return ("cond",)

    def __call__(self, xt: Sample, t: Time, z: Float[Array, "b k"] | None = None) -> Sample:
        xt = as_samples("xt", xt)
        if z is None:  # called as a denoiser is
            raise ValueError(
                f"z: latents are needed, as the stepper LatentAncestral({self.latents}) draws them (other steppers and "
                "final_denoise=True do not), got None"
            )
        check_latents(as_samples("z", z), (xt.shape[0], self.latents))
        given = WithLatent(z, self.cond)
        x0 = self.network.apply(self.params, scaled(self.process, xt, t), clock(self.process, t, xt), given)
        return answered("generator", x0, xt.shape).astype(xt.dtype)


@checked_numbers
class LatentAncestral(AbstractStepper):
    """Steps of a denoising diffusion GAN: x0 = G(xt, t, z) with a fresh z, then xs ~ q(xs | xt, x0).

        xs = c_x xt + c_x0 G(xt, t, z) + c_z eps

    `sample` takes the generator in the denoiser's place, a `LatentGenerator`. Steps are exact where the generator draws
    from q(x0 | xt), whatever their number; the grid should be that of training, and end at t = 0.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import gan
    >>> process, ts = dj.VariancePreserving(), [1.0, 0.5, 0.0]
    >>> generator = lambda xt, t, z: 3.0 + z  # of data N(3, 1) in one step
    >>> xT = dj.prior(jax.random.key(0), process, (4, 2))
    >>> dj.sample(jax.random.key(1), process, generator, xT, ts, gan.LatentAncestral(2)).shape
    (4, 2)

    Attributes:
      latents: how many numbers z has.
      temperature: multiplies z, finite and at least 0, a scalar; 0 is a deterministic x0.

    Raises:
      ValueError: there is no latent, or a temperature that is no scalar, not finite or negative. `sample` raises it
        where it is given a denoiser D(xt, t), which takes no latents.

    Source: Xiao et al. 2022, eq. 5 and section 3.2, arXiv:2112.07804.
    """

    order: ClassVar[int] = 1
    evaluations_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    final_denoise: ClassVar[bool] = False

    latents: int = eqx.field(static=True)
    temperature: Scalar = eqx.field(converter=partial(as_scalar, "temperature"), default=1.0)

    @values_at_once
    def __check_init__(self):
        if self.latents < 1:
            raise ValueError(f"latents: at least one is needed, got {self.latents}")
        check_nonnegative("temperature", self.temperature)

    def check_denoiser(
        self, denoiser: Denoiser | FlowMap, process: AbstractGaussianProcess, ts: GridLike, weights: Weights
    ) -> None:
        """Raises `ValueError` where the denoiser takes no latents, whatever the grid ts [n + 1]."""
        _check_generator("denoiser", denoiser, " is needed by LatentAncestral")

    def prepare(self, grid: ScheduleOnGrid) -> Coefficients:
        return ddim_weights(grid, 1.0)  # at eta = 1 that of q(xs | xt, x0)

    def step(self, denoiser: Denoiser | FlowMap, x: Sample, at: Step, state: None) -> tuple[Sample, None]:
        w = at.weights
        z = draw_latents(at.keys_of(0), self.latents, x.dtype, self.temperature)
        generator: Any = denoiser
        _check_generator("denoiser", generator, " is needed by LatentAncestral")  # also in a solver of diffrax
        x0 = answered("generator", generator(x, at.t, z), x.shape)
        return w.c_x * x + w.c_x0 * x0 + w.c_z * normal_like(at.keys_of(1), x), None


@checked_numbers
class DenoisingGAN(AbstractGAN):
    """A denoising diffusion GAN for a process and a grid of K steps.

        x0' = G(xt, t, z),   xs' ~ q(xs | xt, x0'),   D(xs, t, xt) against D(xs', t, xt)

    K is 1 to 8, as a rule; at K = 1 it is a GAN that is given noise of the data's shape. A conditional one has
    `num_classes` in both networks; `init`, the losses and `generate_samples` are given labels.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import from_linen, gan, networks
    >>> generator = from_linen(networks.LatentNetwork(networks.MLP(width=16, depth=1)))
    >>> discriminator = from_linen(networks.Discriminator(width=16, depth=1))
    >>> ts = dj.uniform_grid(dj.VariancePreserving(), 4, ends=(1.0, 0.0))
    >>> model = DenoisingGAN(generator, discriminator, dj.VariancePreserving(), ts, (2,), latents=4)
    >>> params = model.init(jax.random.key(0), jnp.ones((4, 2)))
    >>> gan.generate_samples(model, params, jax.random.key(1), jnp.arange(5)).shape
    (5, 2)

    Attributes:
      generator: `(xt [b, *d], c_noise [b], WithLatent(z [b, latents], cond)) -> x0 [b, *d]`, such as
        `networks.LatentNetwork` of any network of this library.
      discriminator: `([xs, xt] [b, *d with twice the channels], c_noise [b], cond) -> logits [b, *m]`. Both are given
        -logsnr/8 at t as c_noise, and x scaled as the process's xt by 1/sqrt(alpha^2 + sigma^2).
      process: the forward process; steps are large, so its prior should be what is left of data at ts[0].
      ts: a descending grid of times, [K + 1]; a last one of 0 is the data.
      shape: of one sample, *d.
      latents: how many numbers z has.
      spectral: whether the discriminator has spectral norm.

    Raises:
      ValueError: a part is of another kind, there is no latent, or ts does not descend in [0, 1].

    Source: Xiao et al. 2022, eqs. 3-6 and algorithm 1, arXiv:2112.07804.
    """

    generator: Network = eqx.field(static=True)
    discriminator: Network = eqx.field(static=True)
    process: AbstractGaussianProcess
    ts: Grid
    shape: tuple[int, ...] = eqx.field(static=True)
    latents: int = eqx.field(static=True)
    spectral: bool = eqx.field(static=True, default=False)

    def __init__(
        self,
        generator: Network,
        discriminator: Network,
        process: AbstractGaussianProcess,
        ts: GridLike,
        shape: tuple[int, ...],
        latents: int,
        spectral: bool = False,
    ):
        if not isinstance(process, AbstractGaussianProcess):
            raise ValueError(f"process: a Gaussian process is needed, got {type(process).__name__}")
        check_shape(shape)
        self.generator, self.discriminator, self.process = generator, discriminator, process
        self.ts = _grid(ts)
        self.shape, self.latents, self.spectral = tuple(shape), latents, spectral
        check_parts(self)

    def init(self, key: Key, x0: Sample, cond: Cond = None) -> Params:
        check_key(key)
        x0 = self._data(x0)
        keys = [jax.random.fold_in(key, i) for i in range(3)]
        none, given = (
            jnp.zeros(x0.shape[0], x0.dtype),
            WithLatent(jnp.zeros((x0.shape[0], self.latents), x0.dtype), cond),
        )
        pair = jnp.concatenate([x0, x0], axis=-1)
        params = {
            "generator": self.generator.init(keys[0], x0, none, given),
            "discriminator": self.discriminator.init(keys[1], pair, none, cond),
        }
        return with_power(self, keys[2], params)

    def conditioned(self, params: Params, cond: Cond = None) -> NetworkGenerator:
        """The generator as `G(xt, t, z) -> x0` [b, *d], what `sample` takes with `LatentAncestral(latents)`."""
        return NetworkGenerator(self.generator, self.process, part_of(params, "generator", "GAN"), cond, self.latents)

    def pairs(self, params: Params, key: Key, x0: Sample, cond: Cond = None, *, index: Index) -> Pairs:
        generator = self.conditioned(params, cond)
        return denoising_pairs(key, self.process, self.ts, generator, self._data(x0), latents=self.latents, index=index)

    def logits(self, weights: Params, x: Sample, given: Any, cond: Cond = None) -> Logits:
        x = as_samples("x", x)
        xt, s, t = given
        pair = jnp.concatenate([scaled(self.process, x, s), scaled(self.process, xt, t)], axis=-1)
        return self.discriminator.apply(weights, pair, clock(self.process, t, x), cond)

    @checked_numbers
    def generate(
        self, params: Params, key: Key, index: Index, cond: Cond = None, *, temperature: Scalar = 1.0
    ) -> Sample:
        check_key(key)
        prior_key, step_key = jax.random.split(key)
        xT = prior(prior_key, self.process, (index.shape[0], *self.shape), index=index)
        stepper = LatentAncestral(self.latents, temperature)
        generator: Any = self.conditioned(params, cond)  # which only this stepper calls, with z
        x0 = sample(step_key, self.process, generator, xT, self.ts, stepper, index=index)
        assert not isinstance(x0, tuple)  # nothing is saved
        return x0

    def _data(self, x0: Sample) -> Sample:
        x0 = as_samples("x0", x0)
        return as_samples("x0", x0, (x0.shape[0], *self.shape))


@checked_numbers
def denoising_pairs(
    key: Key,
    process: AbstractGaussianProcess,
    ts: GridLike,
    generator: LatentGenerator,
    x0: Sample,
    *,
    latents: int,
    index: Index | None = None,
) -> Pairs:
    """Real and generated xs for the same xt, each sample at a random step of the grid.

        xs = alpha_s x0 + sigma_s eps,   xt = alpha_{t|s} xs + sigma_{t|s} eps',   xs' ~ q(xs | xt, G(xt, t, z))

    Where G draws from q(x0 | xt), xs and xs' have the same law given xt.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> generator = lambda xt, t, z: 3.0 + z  # of data N(3, 1) in one step
    >>> x0 = 3.0 + jax.random.normal(jax.random.key(0), (4, 2))
    >>> pairs = denoising_pairs(jax.random.key(1), dj.Cosine(), [1.0, 0.0], generator, x0, latents=2)
    >>> xt, s, t = pairs.given
    >>> print(pairs.real.shape, pairs.fake.shape, xt.shape, s, t)
    (4, 2) (4, 2) (4, 2) [0. 0. 0. 0.] [1. 1. 1. 1.]

    Args:
      key: what is drawn for sample i depends on (key, index_i) alone.
      process: the forward process.
      ts: a descending grid, [K + 1].
      generator: `G(xt [b, *d], t [b], z [b, latents]) -> x0 [b, *d]`.
      x0: data [b, *d].
      latents: how many numbers z has.
      index: global indices [b] (default 0 .. b - 1).

    Returns:
      `Pairs(real, fake, (xt, s, t))`, samples [b, *d] and times [b].

    Raises:
      ValueError: ts does not descend in [0, 1], there is no latent, or the generator takes no latents or answers
        another shape.

    Source: Xiao et al. 2022, eq. 5 and algorithm 1, arXiv:2112.07804.
    """
    check_key(key)
    x0 = as_samples("x0", x0)
    if latents < 1:
        raise ValueError(f"latents: at least one is needed, got {latents}")
    _check_generator("generator", generator)
    index = default_index(x0.shape[0], index)
    keys = [sample_keys(jax.random.fold_in(key, i), index) for i in range(5)]
    grid = jnp.asarray(_grid(ts), time_dtype(x0))
    k = jax.vmap(lambda key: jax.random.randint(key, (), 0, grid.shape[0] - 1))(keys[0])
    t, s = grid[k], grid[k + 1]
    growth, cond_std = process.conditional(t, s)
    xs = expand(process.alpha(s), x0) * x0 + expand(process.sigma(s), x0) * normal_like(keys[1], x0)
    xt = (expand(growth, x0) * xs + expand(cond_std, x0) * normal_like(keys[2], x0)).astype(x0.dtype)
    made = answered("generator", generator(xt, t, draw_latents(keys[3], latents, x0.dtype)), x0.shape)
    mean, std = posterior_mean_std(process, made, xt, s, t)
    fake = mean + expand(std, x0) * normal_like(keys[4], x0)
    return Pairs(xs.astype(x0.dtype), fake.astype(x0.dtype), (xt, s, t))


def _check_generator(name: str, generator: Any, needed: str = " is needed") -> None:
    """Raises `ValueError` where something does not take (xt, t, z), or is a flow map, which takes (xt, t, s)."""
    try:
        inspect.signature(generator).bind(None, None, None)
        takes = not is_flow_map(generator)
    except TypeError:
        takes = False
    except ValueError:  # a callable that tells no signature
        takes = True
    if not takes:
        raise ValueError(
            f"{name}: a generator G(xt, t, z){needed}, such as DenoisingGAN.conditioned(params), got "
            f"{type(generator).__name__}, which takes no latents z; DDPM() steps a denoiser D(xt, t), Jump() a flow map"
        )


def _grid(ts: GridLike) -> Grid:
    """A descending grid, [K + 1], on the host where it is known."""
    if not is_concrete(ts):
        return jnp.asarray(ts)
    grid = np.asarray(ts, np.float64)
    check_times(grid, "descend")
    return grid


def scaled(process: AbstractGaussianProcess, x: Sample, t: Time) -> Sample:
    """x [b, *d] at t [] or [b] over sqrt(alpha^2 + sigma^2), of variance 1 where the data's is."""
    check_time(t, x)
    size = jnp.sqrt(process.alpha(t) ** 2 + process.sigma(t) ** 2)
    return (x / expand(size, x)).astype(x.dtype)


def clock(process: AbstractGaussianProcess, t: Time, x: Sample) -> Float[Array, " b"]:
    """-logsnr/8 at t [] or [b], clipped, [b] for samples x [b, *d]."""
    return jnp.broadcast_to(clock_of_logsnr(process, t), x.shape[:1]).astype(x.dtype)
