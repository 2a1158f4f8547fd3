"""Arrays, keys and checks that know nothing of diffusion."""

import contextlib
import math
import types
from collections.abc import Callable, Hashable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

P = ParamSpec("P")
T = TypeVar("T")
REAL = int | float | np.integer | np.floating


def as_leaves(tree: PyTree, dtype: DTypeLike | None) -> PyTree:
    """The arrays of a pytree in a dtype, those on the host brought to the device in one transfer, not one by one."""
    cast = lambda leaf: jnp.asarray(leaf, dtype) if isinstance(leaf, jax.Array) else np.array(leaf, dtype)
    return jax.device_put(jax.tree.map(cast, tree))


def is_key(leaf: object) -> bool:
    """Whether a leaf is an array of typed keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def copied(tree: PyTree) -> PyTree:
    """A tree in memory of its own, each leaf where it is. Arrays compile nothing; `device_put` does not always copy
    keys and NumPy's arrays."""
    plain = lambda leaf: isinstance(leaf, jax.Array) and not is_key(leaf)
    return jax.tree.map(lambda leaf: jax.device_put(leaf, may_alias=False) if plain(leaf) else jnp.copy(leaf), tree)


def path_of(path: tuple[Hashable, ...]) -> str:
    """The name of a leaf by its key path in a pytree: "params/Dense_0/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """Path, such as params/Dense_0/kernel, -> leaf, in the order of the tree."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def part_of(params: PyTree, name: str, model: str) -> PyTree:
    """The part of parameters that has this name, a pytree of arrays [*d]; `ValueError` where there is none."""
    if not isinstance(params, Mapping) or name not in params:
        got = ", ".join(map(str, params)) or "nothing" if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(f"params: {name!r} is needed, as init of the {model} makes it, got {got}")
    return params[name]


def expand(c: Any, x: Any) -> Any:
    """Aligns a coefficient with a sample: `c` of shape [] or [b] becomes [] or [b, 1, ..., 1] with `x [b, *d]`."""
    return c if jnp.ndim(c) == 0 else jnp.reshape(c, (*jnp.shape(c), *(1,) * (jnp.ndim(x) - jnp.ndim(c))))


def is_concrete(tree: PyTree) -> bool:
    """Whether no leaf of the tree is a tracer, so that its values can be looked at now."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def at_once(*trees: PyTree) -> contextlib.AbstractContextManager:
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


def as_value(value: Any, dtype: DTypeLike | None = None) -> Array:
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


def check_real(name: str, value: Any, *, one: bool = True, whole: bool = False) -> None:
    """Raises `ValueError` where `name` is no real (or `whole`) number, or several where `one` is needed.

    What JAX or NumPy takes for an array is looked at as one. Which number it is may be traced.
    """
    if isinstance(value, int if whole else int | float) and not isinstance(value, bool):
        return
    if not isinstance(value, jax.Array) and (hasattr(value, "__jax_array__") or hasattr(value, "__array__")):
        value = jnp.asarray(value) if hasattr(value, "__jax_array__") else np.asarray(value)
    needed = "a whole number is needed, got" if whole else "a number is needed, got"
    if not isinstance(value, jax.Array | np.ndarray):
        if callable(value):
            raise ValueError(f"{name}: {needed} a function; of a schedule give {name}=schedule(step)")
        kind = "" if isinstance(value, int | float | complex) else f"{type(value).__name__}: "
        raise ValueError(f"{name}: {needed} {kind}{value!r:.80}")
    if not any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.integer, *(() if whole else (jnp.floating,)))):
        raise ValueError(f"{name}: {needed} dtype {value.dtype}")
    if one and value.ndim:
        raise ValueError(f"{name}: one number is needed, got an array of shape {value.shape}")


def time_dtype(x: Any) -> np.dtype | type:
    """The dtype for times and weights with a state x: float32, or float64 for a float64 state."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def check(condition: PyTree, message: str) -> None:
    """Raises `ValueError(message)` where a concrete condition is false anywhere; tracers pass unchecked."""
    if is_concrete(condition) and not np.all(np.asarray(condition)):
        raise ValueError(message)


def as_samples(name: str, x: Any, shape: tuple[int, ...] | None = None) -> Any:
    """The argument `name`, a batch of samples x [b, *d], checked, as a JAX array; of a shape, where one is given.

    What is looked at is static, so it costs nothing at run time and works inside jit, vmap and grad. NumPy's arrays
    are welcome.

    Raises:
      ValueError: it is no array of floating-point numbers, has no batch axis or nothing in it, or another shape.
    """
    if not isinstance(x, jax.Array):
        if not isinstance(x, np.ndarray | np.generic):
            raise ValueError(f"{name}: an array of samples [b, *d] is needed, got {_kind(x)}")
        _check_floating(name, x)  # before JAX takes float64 for float32, and an object for an error of its own
        x = jnp.asarray(x)
    _check_floating(name, x)
    if x.ndim == 0:
        raise ValueError(f"{name}: a batch axis is needed, [b, *d], got a single number of shape ()")
    if 0 in x.shape:
        raise ValueError(f"{name}: at least one sample of at least one number is needed, got shape {x.shape}")
    if shape not in (None, x.shape):
        raise ValueError(f"{name}: shape {shape} is needed, of what it goes with (nothing broadcasts), got {x.shape}")
    return x


def as_real(name: str, values: Any, dtype: DTypeLike | None = np.float64) -> np.ndarray:
    """The argument `name`, numbers [n, *d] that need no gradient, on the host, in a dtype or (None) as they are.

    Raises:
      ValueError: they are no real numbers, such as complex ones or objects, or have no first axis.
    """
    array = np.asarray(values)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise ValueError(f"{name}: real numbers are needed, got dtype {array.dtype}")
    if array.ndim == 0:
        raise ValueError(f"{name}: an array of rows [n, *d] is needed, got a single number of shape ()")
    return array if dtype is None else array.astype(dtype, copy=False)


def answered(name: str, answer: object, shape: tuple[int | types.EllipsisType, ...]) -> Any:
    """What the callable `name` answered, checked: floating-point numbers of a shape, so that nothing broadcasts.

    The shape (b, ...), which ends with an ellipsis, is any with one row for each of b samples.

    Raises:
      ValueError: it answered another shape (also one that would broadcast), other numbers, or no array.
    """
    if not isinstance(answer, jax.Array | np.ndarray | np.generic | float):
        raise ValueError(f"{name}: must answer an array of shape {_said(shape)}, got {_kind(answer)}")
    given = jnp.shape(answer)
    if (given[:1] != shape[:1]) if ... in shape else (given != shape):
        raise ValueError(f"{name}: must answer shape {_said(shape)} (nothing broadcasts), got {given}")
    _check_floating(name, answer, "must answer floating-point numbers")
    return answer


def _said(shape):
    return str(shape).replace("Ellipsis", "...")


def _check_floating(name, x, needed="floating-point numbers are needed"):
    dtype = jnp.result_type(x) if isinstance(x, float) else x.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        way = "take its real part" if jnp.issubdtype(dtype, jnp.complexfloating) else "convert by x.astype(jnp.float32)"
        raise ValueError(f"{name}: {needed}, got dtype {dtype}; {way}")


def _kind(x):
    return f"a number of type {type(x).__name__}" if isinstance(x, int | float | complex) else type(x).__name__


def check_time(t: Any, x: Any, name: str = "t") -> None:
    """Checks that a time is a number in [0, 1], or one for each of the samples x [b, *d].

    Values that are traced pass, so that it costs nothing inside jit.

    Raises:
      ValueError: it has another shape, is an array of integers, such as the numbers of a chain's steps, or lies
        outside [0, 1] or is NaN.
    """
    check_one_a_sample(t, x, name)
    if not isinstance(t, int | float) and not jnp.issubdtype(t.dtype, jnp.floating):
        raise ValueError(f"{name}: times are floating-point numbers in [0, 1], got dtype {t.dtype}; step k of K is k/K")
    if is_concrete(t) and getattr(t, "is_fully_addressable", True):
        values = np.asarray(t)
        outside = values[~((values >= 0) & (values <= 1))]
        if outside.size:
            raise ValueError(f"{name}: times lie in [0, 1], data to noise, got {float(outside[0]):.9g}")


def check_one_a_sample(value: Any, x: Any, name: str) -> None:
    """Raises `ValueError` where a value is neither a number nor an array of one for each of the samples x [b, *d]."""
    if isinstance(value, bool) or not isinstance(value, int | float | jax.Array | np.ndarray | np.generic):
        raise ValueError(f"{name}: a number, or an array of one a sample, is needed, got {_kind(value)}")
    check_real(name, value, one=False)
    if jnp.shape(value) not in ((), x.shape[:1]):
        raise ValueError(f"{name}: a scalar or shape {x.shape[:1]}, one a sample, is needed, got {jnp.shape(value)}")


def check_key(key: Any) -> None:
    """Checks that a key is one key of `jax.random`, typed or two (or four) words of uint32.

    Raises:
      ValueError: it is something else, such as a seed, or an array of keys.
    """
    typed = is_key(key) and jnp.shape(key) == ()
    words = isinstance(key, jax.Array | np.ndarray) and key.dtype == jnp.uint32 and key.ndim == 1
    if not typed and not words:
        got = f"shape {key.shape} of {key.dtype}" if hasattr(key, "dtype") and hasattr(key, "shape") else repr(key)
        raise ValueError(f"key: one key is needed, such as jax.random.key(0), got {got}")


def check_shape(shape: Any, axes: int = 1) -> None:
    """Checks a shape, a tuple of positive whole numbers, with at least so many axes.

    Raises:
      ValueError: it is something else.
    """
    whole = isinstance(shape, tuple | list) and all(isinstance(n, int | np.integer) and n > 0 for n in shape)
    if not whole or len(shape) < axes:
        start = "positive whole numbers" + (f", at least {axes}," if axes else "")
        raise ValueError(f"shape: {start} are needed, the batch size first where there is one, got {shape}")


def as_numbers(name: str, value: object, *, whole: bool = False, finite: bool = True) -> Array:
    """Numbers of any shape, `name`, as an array of floating-point ones; plain Python ones, or all, may be whole.

    Raises:
      ValueError: it is an array of other numbers, or no array, or (where `finite`) holds NaN or an infinity.
    """
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        if not (whole and jnp.issubdtype(value.dtype, jnp.integer)):
            _check_floating(name, value)
    elif not isinstance(value, int | float | list | tuple) or isinstance(value, bool):
        raise ValueError(f"{name}: an array of floating-point numbers is needed, got {_kind(value)}")
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:  # words, or lists of different lengths
        raise ValueError(f"{name}: an array of floating-point numbers is needed, got {value!r:.80}") from error
    if jnp.issubdtype(array.dtype, jnp.integer):
        array = array.astype(float)
    _check_floating(name, array)
    if finite:
        check_finite(name, array)
    return array


def check_finite(name: str, value: Any) -> None:
    """Raises `ValueError` where a concrete array of any shape holds NaN or an infinity."""
    check(jnp.isfinite(value), f"{name}: must be finite, got NaN or an infinity")


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
    """The global index of each sample: as given, or 0 .. n - 1.

    Raises:
      ValueError: they are no whole numbers, or not one a sample.
    """
    if index is None:
        return jnp.arange(n)
    needed = f"index: one global index a sample is needed, shape ({n},), got"
    try:
        given: Any = index if isinstance(index, jax.Array) else np.asarray(index)
    except ValueError:  # lists of different lengths
        raise ValueError(f"{needed} {index!r}") from None
    if given.shape != (n,):
        raise ValueError(f"{needed} {given.shape}")
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(f"index: global indices are whole numbers, got dtype {given.dtype}")
    return jnp.asarray(given)


def as_index(index: Int[Array, " n"]) -> Int[Array, " n"]:
    """The global indices [n] of samples that have no other argument [n, ...], checked.

    Raises:
      ValueError: they are no whole numbers in one dimension, or none at all.
    """
    given: Any = index
    if isinstance(given, list | tuple) and given:  # perhaps of different lengths
        return default_index(len(given), index)
    if np.ndim(given) == 0:
        raise ValueError(f"index: global indices [n] are needed, such as jnp.arange(n), got {given}")
    if np.size(given) == 0:
        raise ValueError("index: at least one global index is needed, got none")
    return default_index(np.size(given), index)


def sample_keys(key: PRNGKeyArray | Array, index: Int[Array, " b"]) -> Shaped[Array, "b *k"]:
    """A key for each sample, [b]: `fold_in(key, index_i)`, which depends on its global index and on nothing else.

    Args:
      key: one key.
      index: the global index of each sample, [b], such as `Context.index`.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax.process import normal_like, sample_keys
    >>> keys = sample_keys(jax.random.key(0), jnp.arange(4))
    >>> eps = normal_like(keys, jnp.zeros((4, 2)))
    >>> bool((normal_like(keys[1:3], jnp.zeros((2, 2))) == eps[1:3]).all())
    True

    Raises:
      ValueError: key is something else, such as a seed.
    """
    check_key(key)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def normal_like(keys: Shaped[Array, "b *k"] | None, like: Float[Array, "b *d"]) -> Float[Array, "b *d"]:
    """Standard normal noise in the shape and dtype of `like` [b, *d], each sample from a key of its own.

    Args:
      keys: one a sample, [b], from `sample_keys`, or those of a stepper's step.
      like: samples [b, *d], of which shape and dtype count.

    Raises:
      ValueError: there are no keys, as in a stepper that does not declare `stochastic`, or not one a sample.
    """
    if keys is None or jnp.shape(keys)[:1] != like.shape[:1]:
        got = "none (a stepper that draws must declare stochastic = True)" if keys is None else jnp.shape(keys)
        raise ValueError(f"keys: one a sample, {like.shape[:1]}, is needed, got {got}")
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(keys)


def nan_unless(ok: Bool[Array, ""], x: Any) -> Any:
    """x where `ok`, else NaN, and so are its derivatives: those of `where` would be 0, which passes for an answer."""
    return x * jnp.where(ok, 1.0, jnp.nan).astype(x.dtype)


def accumulator_dtype(dtype: DTypeLike) -> DTypeLike:
    """The dtype in which numbers of a dtype are summed and averaged: float32 at least, so that small terms count.

    A bfloat16 average does not move by less than 0.4 % a step. Integers and float64 stay what they are.
    """
    return jnp.float32 if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32 else dtype


def as_accumulators(tree: PyTree) -> PyTree:
    """A pytree of arrays, each in its `accumulator_dtype`."""
    return jax.tree.map(lambda leaf: leaf if is_key(leaf) else leaf.astype(accumulator_dtype(leaf.dtype)), tree)


def sum_features(x: Float[Array, "b *d"]) -> Float[Array, " b"]:
    """The sum over everything but the batch axis: [b, *d] -> [b], in float32 at least."""
    return jnp.sum(x.astype(accumulator_dtype(x.dtype)), axis=tuple(range(1, x.ndim)))


def mean_features(x: Float[Array, "b *d"]) -> Float[Array, " b"]:
    """The mean over everything but the batch axis: [b, *d] -> [b], in float32 at least."""
    return jnp.mean(x.astype(accumulator_dtype(x.dtype)), axis=tuple(range(1, x.ndim)))


def log_mean_exp(log_weights: Float[Array, "k b"]) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """(log mean_j exp(log_weights), its standard error by the delta method), each [b], of log weights [k, b].

    The error is NaN for a single weight.
    """
    k = log_weights.shape[0]
    nats = jax.nn.logsumexp(log_weights, axis=0) - float(np.log(k))
    shares = jnp.exp(log_weights - nats)
    spread = jnp.std(shares, axis=0, ddof=1) if k > 1 else jnp.full_like(nats, jnp.nan)
    return nats, spread / k**0.5


def in_bytes(number: int | float) -> str:
    """A number of bytes, as a person says it: 4 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} TiB"


def npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is in Fortran's order, and dtype, at the beginning of an .npy."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def check_npy_size(shape: tuple[int, ...], dtype: np.dtype, size: int) -> None:
    """Raises `ValueError` where an array is not of the bytes that its header says, before there is room made for it."""
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"its header says {dtype}{list(shape)}, but it holds {size} bytes")
