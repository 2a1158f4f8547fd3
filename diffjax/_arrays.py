"""Arrays, keys and checks that know nothing of diffusion."""

import contextlib
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

P = ParamSpec("P")
T = TypeVar("T")


def as_leaves(tree: Any, dtype: Any) -> Any:
    """The arrays of a pytree in a dtype, those on the host brought to the device in one transfer, not one by one."""
    cast = lambda leaf: jnp.asarray(leaf, dtype) if isinstance(leaf, jax.Array) else np.array(leaf, dtype)
    return jax.device_put(jax.tree.map(cast, tree))


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def copied(tree: Any) -> Any:
    """A tree in memory of its own, each leaf where it is. Arrays compile nothing; `device_put` does not always copy
    keys and NumPy's arrays."""
    plain = lambda leaf: isinstance(leaf, jax.Array) and not is_key(leaf)
    return jax.tree.map(lambda leaf: jax.device_put(leaf, may_alias=False) if plain(leaf) else jnp.copy(leaf), tree)


def expand(c: Any, x: Any) -> Any:
    """Aligns a coefficient with a sample: `c` of shape [] or [b] becomes [] or [b, 1, ..., 1] beside `x [b, *d]`."""
    return c if jnp.ndim(c) == 0 else jnp.reshape(c, (*jnp.shape(c), *(1,) * (jnp.ndim(x) - jnp.ndim(c))))


def is_concrete(tree: Any) -> bool:
    """Whether no leaf of the tree is a tracer, so that its values can be looked at now."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def at_once(*trees: Any) -> contextlib.AbstractContextManager:
    """A context in which what is made of these trees is a value, inside jit too, where none of their leaves is traced.

    Under a trace JAX stages every operation, also one of numbers that are known: their result would be a tracer, which
    cannot be looked at, and which outlives its trace where it is kept.
    """
    staged = is_concrete(trees) and not is_concrete(jnp.zeros(()))
    return jax.ensure_compile_time_eval() if staged else contextlib.nullcontext()


def values_at_once(function: Callable[P, T]) -> Callable[P, T]:
    """A function whose result is a value, inside jit too, where nothing that it takes is traced."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with at_once(args, kwargs):
            return function(*args, **kwargs)

    return call


def as_value(value: Any, dtype: Any = None) -> Array:
    """`jnp.asarray`, but that a value stays one inside jit."""
    array = jnp.asarray(value, dtype)
    if is_concrete(array) or not is_concrete(value):
        return array
    with jax.ensure_compile_time_eval():
        return jnp.asarray(value, dtype)


def on_host() -> contextlib.AbstractContextManager:
    """A context in which JAX computes on this machine's CPU, where JAX has one."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def as_scalar(value: Any) -> Array:
    """A numeric field as a float leaf, so that gradients reach it; a Python number, whole ones too, stays weakly typed,
    so that it never widens a float32 sample. A value stays one inside jit."""
    return as_value(float(value) if isinstance(value, int | np.integer) else value)


def time_dtype(x: Any) -> Any:
    """The dtype for times and weights beside a state x: float32, or float64 for a float64 state."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def check(condition: Any, message: str) -> None:
    """Raises `ValueError(message)` where a concrete condition is false anywhere; tracers pass unchecked."""
    if is_concrete(condition) and not np.all(np.asarray(condition)):
        raise ValueError(message)


def check_times(ts: np.ndarray, order: str) -> None:
    """Checks a grid of times [n + 1], n >= 1, in [0, 1] that must "ascend" or "descend", strictly.

    Raises:
      ValueError: it does not; the message names the first time at fault.
    """
    if ts.ndim != 1 or ts.size < 2:
        raise ValueError(f"ts: at least two times in one dimension are needed, got shape {ts.shape}")
    right = np.diff(ts) > 0 if order == "ascend" else np.diff(ts) < 0
    if not right.all():
        i = int(np.argmin(right))
        raise ValueError(f"ts: must {order}, got {ts[i]:.9g} and then {ts[i + 1]:.9g} (places {i} and {i + 1})")
    outside = ts[(ts < 0) | (ts > 1)]
    if outside.size:
        raise ValueError(f"ts: times lie in [0, 1], got {outside[0]:.9g}")


def default_index(n: int, index: Int[Array, " n"] | None) -> Int[Array, " n"]:
    """The global index of each sample: as given, or 0 .. n - 1."""
    if index is None:
        return jnp.arange(n)
    if jnp.shape(index) != (n,):
        raise ValueError(f"index: one global index a sample is needed, shape ({n},), got {jnp.shape(index)}")
    return index


def sample_keys(key: PRNGKeyArray | Array, index: Int[Array, " b"]) -> Shaped[Array, "b *k"]:
    """A key for each sample, `fold_in(key, index_i)`: it depends on the global index and on nothing else."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def normal_like(keys: Shaped[Array, "b *k"], x: Float[Array, "b *d"]) -> Float[Array, "b *d"]:
    """Standard normal noise in the shape and dtype of `x [b, *d]`, each sample from its own key `keys [b]`."""
    return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(keys)


def accumulator_dtype(dtype: Any) -> Any:
    """The dtype in which numbers of a dtype are summed and averaged: float32 at least, so that small terms count.

    A bfloat16 average does not move by less than 0.4 % a step. Integers and float64 stay what they are.
    """
    return jnp.float32 if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32 else dtype


def as_accumulators(tree: Any) -> Any:
    """A pytree of arrays, each in its `accumulator_dtype`."""
    return jax.tree.map(lambda leaf: leaf if is_key(leaf) else leaf.astype(accumulator_dtype(leaf.dtype)), tree)


def sum_features(x: Float[Array, "b *d"]) -> Float[Array, " b"]:
    """The sum over everything but the batch axis: [b, *d] -> [b], in float32 at least."""
    return jnp.sum(x.astype(accumulator_dtype(x.dtype)), axis=tuple(range(1, x.ndim)))


def mean_features(x: Float[Array, "b *d"]) -> Float[Array, " b"]:
    """The mean over everything but the batch axis: [b, *d] -> [b], in float32 at least."""
    return jnp.mean(x.astype(accumulator_dtype(x.dtype)), axis=tuple(range(1, x.ndim)))


def in_bytes(number: int | float) -> str:
    """A number of bytes, as a person says it: 4 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} TiB"
