"""Initialisation in a second: one random draw for all parameters, cut up on the host.

Running a U-Net's `init` takes 14 s (every layer is executed), compiling it 15 to 20 s (every random draw is compiled).
Neither is needed to know that a leaf is

    W = mean + std Z,    Z ~ N(0, I),    std^2 = 1/fan_in,    fan_in = all axes but the last

so the module is only traced, each initialiser notes (mean, std) of the leaf it makes, and one draw of Z serves all
(`draw_parameters`).
(He et al. 2015, eq. 14 has std^2 = 2/fan_in; with 1, a linear layer keeps the variance of its input.)
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffjax._arrays import is_concrete
from diffjax._typing import Key, Params

Initialiser: TypeAlias = Callable[..., Array]
"""`(key, shape, dtype) -> array`, as Flax calls it."""


class _Note(NamedTuple):
    leaf: Array
    mean: float
    std: float


_NOTES: ContextVar[list[_Note] | None] = ContextVar("notes", default=None)


@contextmanager
def _noting() -> Iterator[list[_Note]]:
    notes: list[_Note] = []
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)


def normal(std: float | None = None) -> Initialiser:
    """A Flax initialiser `(key, shape, dtype) -> N(0, std^2)`; without std, 1/fan_in is the variance."""

    def initialise(key, shape, dtype=jnp.float32):
        return _make(key, shape, dtype, 0.0, 1 / math.sqrt(math.prod(shape[:-1])) if std is None else std)

    return initialise


def constant(value: float) -> Initialiser:
    """A Flax initialiser `(key, shape, dtype) -> value` everywhere."""
    return lambda key, shape, dtype=jnp.float32: _make(key, shape, dtype, value, 0.0)


def _make(key, shape, dtype, mean, std):
    notes = _NOTES.get()
    if notes is None:
        return mean + std * jax.random.normal(key, shape, dtype) if std else jnp.full(shape, mean, dtype)
    notes.append(_Note(jnp.zeros(shape, dtype), mean, std))
    return notes[-1].leaf


def stacked(init: Callable[[Key], Params], length: int) -> Callable[[Key], Params]:
    """An initialiser of `length` trees in one, every leaf [length, ...], from that of one, `(key) -> tree`."""

    def initialise(key):
        notes = _NOTES.get()
        if notes is None:
            return jax.vmap(init)(jax.random.split(key, length))
        tree = init(key)
        known = {id(note.leaf): note for note in notes}
        return jax.tree.map(lambda leaf: _stacked_leaf(notes, leaf, known.get(id(leaf)), length), tree)

    return initialise


def _stacked_leaf(notes, leaf, law, length):
    """Zeros, noted if the leaf was; if it was not, `draw_parameters` falls back to `init`."""
    whole = jnp.zeros((length, *leaf.shape), leaf.dtype)
    if law is not None:
        notes.append(_Note(whole, law.mean, law.std))
    return whole


def draw_parameters(key: Key, init: Callable[..., Params], *args: Any) -> Params:
    """All parameters of a Flax module from one random draw: the same distribution as `init`, other numbers.

    >>> from diffjax.networks import T5Encoder
    >>> module, ids = T5Encoder(vocabulary=9, width=8, depth=1), jnp.zeros((1, 3), int)
    >>> sorted(draw_parameters(jax.random.key(0), module.init, ids)["params"])
    ['encoder', 'shared']

    Args:
      key: for the draw.
      init: `(key, *args) -> parameters`, a pytree, such as `module.init`.
      args: of `init`, arrays or pytrees of them; only their shapes and dtypes count.

    Returns:
      The pytree that `init` returns. Where one of its leaves is not made by the initialisers of this package it is
      `init`'s own answer, compiled.
    """
    leaves, treedef = jax.tree.flatten((key, args))
    shapes = jax.eval_shape(lambda *leaves: leaves, *leaves)
    laws = _traced(init, treedef, shapes, jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]
    if laws is None:
        return jax.jit(init)(key, *args)
    return jax.device_put(jax.tree.unflatten(laws.treedef, _cut(key, laws)))


class _Laws(NamedTuple):
    """The parameters' shapes, their tree, and (mean, std) of each."""

    shapes: list[jax.ShapeDtypeStruct]
    treedef: Any
    moments: list[tuple[float, float]]


@functools.lru_cache(16)  # a run needs the shapes of its state, and then the state
def _traced(init, treedef, about, x64) -> _Laws | None:
    """The distribution of `init`'s parameters; None where a leaf has no note."""
    laws: list[tuple[float, float] | None] = []

    def trace(*leaves):
        key, args = jax.tree.unflatten(treedef, leaves)
        with _noting() as notes:
            tree = init(key, *args)
            known = {id(note.leaf): (note.mean, note.std) for note in notes}
            laws.extend(known.get(id(leaf)) for leaf in jax.tree.leaves(tree))
        return tree

    shapes, treedef_out = jax.tree.flatten(jax.eval_shape(trace, *about))
    return None if None in laws else _Laws(shapes, treedef_out, laws)  # pyright: ignore[reportArgumentType]


def _cut(key, laws: _Laws):
    """The leaves, each its share of one standard normal vector, scaled."""
    sizes = [shape.size if std else 0 for shape, (_, std) in zip(laws.shapes, laws.moments, strict=True)]
    ends = list(itertools.accumulate(sizes))
    unit = jax.random.normal(key, (sum(sizes),), jnp.float32)
    xp = np if is_concrete(unit) else jnp  # host slices compile nothing
    unit = xp.asarray(unit)
    for shape, (mean, std), size, end in zip(laws.shapes, laws.moments, sizes, ends, strict=True):
        leaf = mean + std * unit[end - size : end].reshape(shape.shape) if size else xp.full(shape.shape, mean)
        yield xp.asarray(leaf, shape.dtype)
