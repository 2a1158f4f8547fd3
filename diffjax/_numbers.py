"""Arguments and fields that are numbers: read, and refused by their names where they are none.

a field        partial(as_scalar, "beta_min") as its converter: a float leaf
an argument    checked_numbers, by annotation:  int --> as_whole,  float | Scalar | PerSample --> check_real
"""

import collections.abc
import inspect
import operator
import types
import typing
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float

from diffjax._arrays import REAL, as_numbers, as_value, at_once, check_real
from diffjax._typing import PerSample, Scalar, WholeNumber

T = TypeVar("T")


def as_leaf(name: str, value: Any) -> Array:
    """The numbers `name`, of any shape, as a float leaf, so that gradients reach them.

    A number of Python or NumPy, and whole ones of any kind, such as np.log(3) or jnp.array(20), are weakly typed, so
    that they never widen a float32 sample. A value stays one inside jit.

    Raises:
      ValueError: it is no real number, and no array of such.
    """
    if isinstance(value, REAL) and not isinstance(value, bool):
        return as_value(float(value))
    if isinstance(value, list | tuple):
        with at_once(value):
            return as_numbers(name, value, whole=True, finite=False)
    check_real(name, value, one=False)
    array = as_value(value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        return array
    with at_once(value), jax.numpy_dtype_promotion("standard"):
        return array * 1.0


def as_scalar(name: str, value: Any) -> Float[Array, ""]:
    """The number `name` as a float leaf, see `as_leaf`; `ValueError` where it is none, or several."""
    check_real(name, value)
    return as_leaf(name, value)


def as_whole(name: str, value: Any) -> Any:
    """A whole number as an int: Python's and NumPy's, and sizes that `jax.export` leaves open as they are.

    Raises:
      ValueError: it is none; booleans and floats are none, whatever their value.
    """
    if is_symbolic_dim(value):
        return value
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    traced = "; it must be known before tracing" if isinstance(value, Tracer) else ""
    raise ValueError(f"{name}: a whole number is needed, got {value!r}{traced}")


def as_wholes(name: str, values: Any) -> tuple[Any, ...]:
    """Several whole numbers, as a tuple of ints; raises `ValueError` where they are none."""
    if isinstance(values, str) or not np.iterable(values):
        raise ValueError(f"{name}: a tuple of whole numbers is needed, such as (2, 2), got {values!r}")
    try:
        return tuple(as_whole(name, value) for value in values)
    except ValueError:
        raise ValueError(f"{name}: whole numbers are needed, got {values!r}") from None


def checked_numbers(thing: T) -> T:
    """A function, or a class, whose arguments that are annotated as numbers are checked, by their names.

    Whole numbers, `int`, `tuple[int, ...]` and `Sequence[int]`, become ints by `as_whole`. What is a `float` or a
    `Scalar` has to be one real number, a `PerSample` real numbers, a `WholeNumber` one whole one; these are passed on
    as they came. Each may also be None where the annotation says so.
    """
    function: Any = thing.__init__ if isinstance(thing, type) else thing
    parameters = list(inspect.signature(function).parameters.values())
    readers = {p.name: (i, reader) for i, p in enumerate(parameters) if (reader := reader_of(p.annotation))}
    assert readers, f"{thing} has no argument that is a number"

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name, (place, reader) in readers.items():
            if place < len(args):
                args = (*args[:place], reader(name, args[place]), *args[place + 1 :])
            elif name in kwargs:
                kwargs[name] = reader(name, kwargs[name])
        return function(*args, **kwargs)

    if not isinstance(thing, type):
        return typing.cast(T, call)
    typing.cast(Any, thing).__init__ = call
    return thing


def reader_of(annotation: object) -> Callable[[str, Any], Any] | None:
    """What reads an argument that is a number, or whole numbers, by its annotation; None for any other."""
    union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    kinds = typing.get_args(annotation) if union else (annotation,)
    several = [k for k in kinds if typing.get_origin(k) in (tuple, collections.abc.Sequence)]
    if any(set(typing.get_args(kind)) - {int, ...} for kind in several):
        return None
    real = set(kinds) & {float, Scalar, PerSample, WholeNumber}
    if set(kinds) - {int, type(None), *real, *several} or set(kinds) == {type(None)} or (real and several):
        return None

    def read(name: str, value: Any) -> Any:
        if value is None and type(None) in kinds:
            return None
        if PerSample in real and isinstance(value, list | tuple):
            as_leaf(name, value)
            return value
        if real:
            check_real(name, value, one=PerSample not in real, whole=WholeNumber in real)
            return value
        return as_wholes(name, value) if several and (int not in kinds or np.iterable(value)) else as_whole(name, value)

    return read
