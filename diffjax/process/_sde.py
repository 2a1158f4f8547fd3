"""Any SDE by its f and g, forward simulation of any process by diffrax, and the Brownian paths of all our SDE solves.

    x0, key --> simulate: dx = f dt + g dw on the given times --> paths

The noise of sample i comes from `fold_in(key, index_i)`. Where the steps are fixed, increments are drawn step by
step, at the price of a hand-written loop; a tree (diffrax's VirtualBrownianTree), 20 to 100 times slower, serves
adaptive solves, which must revisit the same path.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from diffjax._arrays import (
    answered,
    as_samples,
    check,
    check_key,
    check_times,
    default_index,
    is_concrete,
    sample_keys,
    time_dtype,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Grid, Index, Key, Sample, Scalar, Time
from diffjax.process._base import AbstractProcess
from diffjax.process._gaussian import AbstractGaussianProcess

LevyArea: TypeAlias = (
    type[diffrax.BrownianIncrement] | type[diffrax.SpaceTimeLevyArea] | type[diffrax.SpaceTimeTimeLevyArea]
)


class SDE(AbstractProcess):
    """dx = f(x, t) dt + g(x, t) dw by its two functions: for simulation, and for losses that need no kernel.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax.process import SDE, simulate
    >>> geometric = SDE(lambda x, t: 0.5 * x, lambda x, t: 0.4 * x)
    >>> simulate(jax.random.key(0), geometric, jnp.ones((3, 1)), jnp.linspace(0, 1, 11)).shape
    (11, 3, 1)

    Args:
      drift: `f(x [b, *d], t [] or [b]) -> [b, *d]`.
      diffusion: `g(x, t)`, of shape [] (the same for all samples, whatever x), [b] or [b, *d] (diagonal noise); or, for
        vectors x [b, d], a full matrix for each sample, [b, d, d]. Broadcast a constant matrix to that shape: [d, d]
        could be mistaken for [b, d].

    An `equinox.Module` (or any other callable that is a pytree) keeps its arrays as leaves: its numbers can be changed
    without compiling, and learned. A plain function is static; build it once.

    Raises:
      ValueError: an argument cannot be called.
    """

    f: Callable[[Sample, Time], Sample]
    g: Callable[[Sample, Time], Float[Array, "..."]]

    def __init__(
        self, drift: Callable[[Sample, Time], Sample], diffusion: Callable[[Sample, Time], Float[Array, "..."]]
    ):
        for name, function in {"drift": drift, "diffusion": diffusion}.items():
            if not callable(function):
                raise ValueError(f"{name}: a function of (x, t) is needed, got {function!r}")
        self.f, self.g = _as_pytree(drift), _as_pytree(diffusion)

    def drift(self, x: Sample, t: Time) -> Sample:
        x = as_samples("x", x)
        return answered("drift", self.f(x, t), x.shape)

    def diffusion(self, x: Sample, t: Time) -> Float[Array, "..."]:
        x, g = as_samples("x", x), self.g(x, t)
        shapes = [(), x.shape[:1], x.shape, *([(*x.shape, x.shape[1])] if x.ndim == 2 else [])]
        g = jnp.asarray(g, float) if isinstance(g, int) else g
        return jnp.asarray(answered("diffusion", g, jnp.shape(g) if jnp.shape(g) in shapes else x.shape))


def _as_pytree(function):
    """A plain function has no leaves: inside `Partial` it becomes part of the tree's structure."""
    return jax.tree_util.Partial(function) if jax.tree_util.all_leaves([function]) else function


@checked_numbers
class PerSamplePath(diffrax.AbstractBrownianPath):
    """A batch of independent Brownian paths, one key a sample; made by `per_sample_path`."""

    keys: Shaped[Array, "b *k"]
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: DTypeLike = eqx.field(static=True)
    levy_area: LevyArea = eqx.field(static=True)
    tolerance: float | None = eqx.field(static=True)
    ends: tuple[float, float] = eqx.field(static=True)

    def per_sample_fields(self) -> tuple[str, ...]:
        """The fields whose leaves have the batch axis, [b, ...]."""
        return ("keys",)

    @property
    def t0(self):
        return -jnp.inf if self.tolerance is None else self.ends[0]

    @property
    def t1(self):
        return jnp.inf if self.tolerance is None else self.ends[1]

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Any:
        """The increments over [t0, t1], [b, *d], or their Levy areas; see `diffrax.AbstractBrownianPath.evaluate`."""
        if self.tolerance is None and self.levy_area is diffrax.BrownianIncrement and t1 is not None:
            # As UnsafeBrownianPath, with one derivation of keys rather than three: in few dimensions half of the cost.
            draw = jax.vmap(lambda key: jax.random.normal(key, self.shape, self.dtype))
            increment = jnp.sqrt(t1 - t0).astype(self.dtype) * draw(self.step_keys(t0))
            return diffrax.BrownianIncrement(dt=t1 - t0, W=increment) if use_levy else increment
        increments = jax.vmap(lambda key: self._one(key).evaluate(t0, t1, left, use_levy))(self.keys)
        # The step's length is the batch's own, so it stays a scalar.
        return eqx.tree_at(lambda levy: levy.dt, increments, t1 - t0) if use_levy else increments

    def step_keys(self, r: Scalar) -> Shaped[Array, "b *k"]:
        """A key for each sample, [b], and the step that begins at r, a scalar, from the bits of r."""
        keys = self.keys
        for bits in jnp.atleast_1d(jax.lax.bitcast_convert_type(jnp.asarray(r), jnp.uint32)):  # two words in float64
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, bits)
        return keys

    def _one(self, key):
        shape = jax.ShapeDtypeStruct(self.shape, self.dtype)
        if self.tolerance is None:
            return diffrax.UnsafeBrownianPath(shape, key, self.levy_area)
        return diffrax.VirtualBrownianTree(*self.ends, self.tolerance, shape, key, self.levy_area)


@checked_numbers
def per_sample_path(
    key: Key,
    index: Index | int,
    shape: tuple[int, ...],
    *,
    dtype: DTypeLike | None = None,
    levy_area: LevyArea = diffrax.BrownianIncrement,
    tolerance: float | None = None,
    ends: tuple[float, float] = (-1.0, 0.0),
) -> PerSamplePath:
    """Brownian paths for a batch, for `reverse_sde`; sample i's path depends on (key, index_i) alone.

    >>> import jax
    >>> import diffjax as dj
    >>> path = dj.per_sample_path(jax.random.key(0), 4, (2,))
    >>> path.evaluate(-1.0, -0.9).shape
    (4, 2)

    Args:
      key: one key for the batch.
      index: global indices [b], or the batch size b for 0 .. b - 1.
      shape: one sample's shape (*d).
      dtype: the state's dtype; default float32 (float64 under x64).
      levy_area: what the solver needs: `diffrax.BrownianIncrement`, or `diffrax.SpaceTimeLevyArea` for ShARK, SEA,
        SRA1 and their like.
      tolerance: None draws each increment anew, for fixed steps. A number makes a virtual Brownian tree of that
        resolution in time, for adaptive steps.
      ends: the clock's ends, for the tree; the default is all of r = -t.
    """
    check_key(key)
    keys = _first_keys(key, index) if isinstance(index, int) else _keys(key, index)
    dtype = jnp.result_type(float) if dtype is None else dtype
    return PerSamplePath(
        keys=keys, shape=tuple(shape), dtype=dtype, levy_area=levy_area, tolerance=tolerance, ends=ends
    )


_keys = jax.jit(sample_keys)  # op by op this costs more than a short solve


@functools.partial(jax.jit, static_argnums=1)
def _first_keys(key, n):
    return sample_keys(key, jnp.arange(n))


def simulate(
    key: Key, process: AbstractProcess, x0: Sample, ts: Grid, *, index: Index | None = None
) -> Float[Array, "points b *d"]:
    """Paths of the forward SDE through the times ts, by Euler-Maruyama with one step between neighbours.

    Args:
      key: sample i uses `fold_in(key, index_i)`.
      process: any process; only its drift and its noise (`noise_operator`) are used.
      x0: the state at ts[0], [b, *d].
      ts: ascending times [n + 1] in [0, 1]; the error in law is of first order in their gaps. Those of a Gaussian
        process are brought into its `interval`, where its SDE is finite: x0 at time 0 is taken to lie at the lower end,
        where the noise that it then lacks is below 5e-5 of its scale.
      index: global indices [b] of the samples.

    Returns:
      The states at all of ts, [n + 1, b, *d], the first of them x0.

    Raises:
      ValueError: ts does not ascend, leaves [0, 1], or has two times beyond the same end of the interval.
    """
    check_key(key)
    x0 = as_samples("x0", x0)
    if is_concrete(ts):
        check_times(np.asarray(ts, np.float64), "ascend")
    ts = jnp.asarray(ts, time_dtype(x0))
    if isinstance(process, AbstractGaussianProcess):
        low, high = process.interval()
        ts = jnp.clip(ts, jnp.asarray(low, ts.dtype), jnp.asarray(high, ts.dtype))
        if is_concrete((ts, process)):
            apart = ts[1:] > ts[:-1]
            check(apart, f"ts: two times lie beyond the same end of the process's interval [{low}, {high}]")
    return _simulate(key, process, x0, ts, default_index(x0.shape[0], index))


@eqx.filter_jit
def _simulate(key, process, x0, ts, index):
    path = per_sample_path(key, index, x0.shape[1:], dtype=x0.dtype)
    drift = diffrax.ODETerm(lambda t, x, process: process.drift(x, t))
    noise = diffrax.ControlTerm(lambda t, x, process: process.noise_operator(x, t), path)
    solution = diffrax.diffeqsolve(
        diffrax.MultiTerm(drift, noise),
        diffrax.Euler(),
        t0=ts[0],
        t1=ts[-1],
        dt0=None,
        y0=x0,
        args=process,
        saveat=diffrax.SaveAt(ts=ts),
        stepsize_controller=diffrax.StepTo(ts),
        max_steps=ts.shape[0],
        adjoint=diffrax.ForwardMode(),
    )
    return jnp.asarray(solution.ys)
