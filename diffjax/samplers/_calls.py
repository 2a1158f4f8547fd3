"""What a call costs before its program runs: little against 50 steps of a tiny network.

jit_leaves   equinox.filter_jit at a third of its price: arrays are traced, whatever else a pytree holds is static
remembered   what was computed before for equal values: weights and checks of a grid that is used again
"""

from collections.abc import Callable, Hashable
from functools import wraps
from threading import Lock
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from diffjax._arrays import is_concrete

T = TypeVar("T")
_ARRAYS = (jax.Array, np.ndarray, np.generic)
_KNOWN: dict[Hashable, tuple] = {}
_LIMIT = 256
_LOCK = Lock()


def jit_leaves(function: Callable[..., T]) -> Callable[..., T]:
    """`jax.jit` of a function of pytrees (any shape) whose leaves may be functions, numbers or None as well as arrays.

    Leaves that are no arrays are part of what is compiled, so they must be hashable; outputs are arrays.
    """

    def run(static, arrays):
        layout, others = static
        leaves = [other[0] if array is None else array for array, other in zip(arrays, others, strict=True)]
        return function(*jax.tree.unflatten(layout, leaves))

    run.__name__ = run.__qualname__ = function.__name__
    compiled = jax.jit(run, static_argnums=0)

    @wraps(function)
    def call(*args):
        leaves, layout = jax.tree.flatten(args)
        arrays = [leaf if isinstance(leaf, _ARRAYS) else None for leaf in leaves]
        others = tuple(None if isinstance(leaf, _ARRAYS) else _distinct(leaf) for leaf in leaves)
        return compiled((layout, others), arrays)

    return call


def remembered(compute: Callable[[], T], *by: PyTree) -> T:
    """compute(), or what it gave before for the same `by`: pytrees compared by their values, arrays of any shape by
    their bytes. The caller must not change the answer, and names itself in `by`.

    Inside jit, too, what is made of values is a value, so that an answer does not depend on where it was requested
    for. Nothing traced is remembered: neither for a `by` with a tracer in it, nor an answer that holds one.
    """
    leaves, layout = jax.tree.flatten(by)
    if not is_concrete(leaves):
        return compute()
    try:
        key = (jax.config.read("jax_enable_x64"), layout, *map(_value, leaves))
        answer = _KNOWN.get(key)
    except TypeError:  # what cannot be hashed, or has no bytes
        return compute()
    if answer is None:
        with jax.ensure_compile_time_eval():
            answer = (compute(),)
        if not is_concrete(answer):
            return answer[0]
        with _LOCK:
            if len(_KNOWN) >= _LIMIT:
                _KNOWN.pop(next(iter(_KNOWN)))  # the oldest
            _KNOWN[key] = answer
    return answer[0]


def _value(leaf):
    if not isinstance(leaf, _ARRAYS):
        return _distinct(leaf)
    array = np.asarray(leaf)
    return array.dtype, array.shape, array.tobytes()


def _distinct(leaf):
    """A leaf with what tells True from 1 from 1.0, and 0.0 from -0.0."""
    return leaf, type(leaf), repr(leaf) if isinstance(leaf, float) else None
