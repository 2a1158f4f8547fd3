"""Layouts: one step function over devices, in one of four ways.

    layout    state                          batch [b, ...]                gradients
    jit       replicated                     split over the mesh           all-reduced by the compiler
    fsdp      split along a long axis        split over the mesh           gathered and scattered by the compiler
    tensor    layers split by rules          split over data and fsdp      communicated by the compiler as layers need
    pmap      one copy per device            [devices, b/devices, ...]     averaged by the step (axis_name)

A `Layout` is a few functions, so the loop needs no knowledge of devices. Steps are compiled once, and the state passed
to one is donated: use the returned one. The first three are one function under `jax.jit` with other `NamedSharding`s;
pmap is in `_pmap.py`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from diffjax._arrays import copied, is_key, on_host
from diffjax._numbers import checked_numbers
from diffjax.training._mesh import FSDP, TENSOR, batch_axes, batch_parts, check_divides, data_mesh, make_mesh
from diffjax.training._rules import (
    TENSOR_RULES,
    Rules,
    Specs,
    fsdp_specs,
    replicated_specs,
    tensor_specs,
    without_fsdp,
)
from diffjax.training._state import TrainState
from diffjax.training._step import Metrics, Step, batch_size_of

MIN_SIZE = 128
"""Arrays with fewer numbers are not split: gathering them takes longer than the memory is worth."""


class Layout(NamedTuple):
    """A step function placed on devices.

    Attributes:
      devices: number of devices, or groups of them, that a batch is split over.
      step: `(state, batch) -> (state, metrics)` on placed arguments; compiled; the state is donated. Metrics are
        replicated: scalars, or [k] with k steps a call.
      put_state: copies a state [*d] of `init_state`, or one that was restored, to the devices.
      move_state: the same for a state that nothing else refers to, such as one just restored into `abstract`: each
        array is deleted once it is copied, so that there are never two states at a time.
      put_batch: splits a batch of leaves [b, ...] over the devices; ValueError where b does not divide. With k steps a
        call it takes a list of k batches. In several processes each passes its own part of the global batch.
      get_state: an ordinary state [*d] from a placed one; its arrays remain on their devices.
      init: `(make_state) -> placed state`; `make_state()` runs on the host's CPU, so that a state which is too large
        for one device is never on one.
      abstract: of a placed state, or one from `jax.eval_shape`, the `ShapeDtypeStruct`s with shardings into which a
        checkpoint is restored; `move_state` places the restored state.
      steps: number of optimiser steps in a call of `step`.
      about: for a log or a checkpoint: the layout's name and the size of each axis.
    """

    devices: int
    step: Step
    put_state: Callable[[TrainState], TrainState]
    move_state: Callable[[TrainState], TrainState]
    put_batch: Callable[[PyTree], PyTree]
    get_state: Callable[[TrainState], TrainState]
    init: Callable[[Callable[[], TrainState]], TrainState]
    abstract: Callable[[TrainState], TrainState]
    steps: int
    about: dict[str, str | int]


@checked_numbers
def jit_layout(step: Step, mesh: Mesh | None = None, *, steps: int = 1) -> Layout:
    """The step under `jax.jit`: state [*d] replicated, batch [b, ...] split, gradients averaged by the compiler.

    Args:
      step: from `make_train_step` without an axis name.
      mesh: from `data_mesh` or `make_mesh`; all devices by default.
      steps: optimiser steps a call.
    """
    return _jit_layout("jit", step, data_mesh() if mesh is None else mesh, replicated_specs, steps)


@checked_numbers
def fsdp_layout(step: Step, mesh: Mesh | None = None, *, min_size: int = MIN_SIZE, steps: int = 1) -> Layout:
    """Parameters, averages and optimiser state split over the axis "fsdp", the batch [b, ...] over "data" and "fsdp".

    A device stores its part of the state, and while a step runs the whole parameters and gradient in addition.

    Args:
      step: from `make_train_step` without an axis name.
      mesh: from `make_mesh(fsdp=n)`; all devices by default.
      min_size: arrays with fewer numbers are replicated.
      steps: optimiser steps a call.

    Raises:
      ValueError: the mesh has no axis "fsdp"; when a state is placed, none of its arrays can be split.
    """
    mesh = make_mesh(fsdp=jax.device_count()) if mesh is None else mesh
    _check_axis(mesh, FSDP)
    return _jit_layout("fsdp", step, mesh, fsdp_specs(mesh, min_size), steps)


@checked_numbers
def tensor_layout(
    step: Step, mesh: Mesh | None = None, rules: Rules = TENSOR_RULES, *, min_size: int = MIN_SIZE, steps: int = 1
) -> Layout:
    """Layers split over the axis "tensor" by rules; the batch [b, ...] over "data" and "fsdp", as in `fsdp_layout`.

    Args:
      step: from `make_train_step` without an axis name.
      mesh: from `make_mesh(tensor=n)`; all devices by default.
      rules: a table of (regular expression for the end of an array's path, PartitionSpec); the first that fits applies,
        and arrays that none fits are replicated. By default those of our networks' attention and residual blocks.
      min_size: arrays with fewer numbers are not split over "fsdp".
      steps: optimiser steps a call.

    Raises:
      ValueError: the mesh has no axis "tensor"; when a state is placed, a rule does not divide a parameter that it
        fits, or no rule fits any.
    """
    mesh = make_mesh(tensor=jax.device_count()) if mesh is None else mesh
    _check_axis(mesh, TENSOR)
    return _jit_layout("tensor", step, mesh, tensor_specs(mesh, rules, min_size), steps)


def _jit_layout(name: str, step: Step, mesh: Mesh, specs_of: Specs, steps: int) -> Layout:
    check_steps(steps)
    parts = batch_parts(mesh)
    rows = PartitionSpec(batch_axes(mesh))
    split = NamedSharding(mesh, rows if steps == 1 else PartitionSpec(None, *rows))
    replicated = NamedSharding(mesh, PartitionSpec())

    def on_mesh(specs: PyTree) -> PyTree:
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)

    def shardings(state: TrainState) -> PyTree:
        return on_mesh(specs_of(state))

    def one_step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        """The new state has the shardings of the old one. Parameters are gathered for the loss: otherwise the compiler
        may communicate the activations of each layer instead, which are larger."""
        specs = specs_of(state)
        if mesh.shape.get(FSDP, 1) == 1:
            state, metrics = step(state, batch)
        else:
            gathered = on_mesh(without_fsdp(specs.params))
            state, metrics = step(state, batch, lambda params: jax.lax.with_sharding_constraint(params, gathered))
        return jax.lax.with_sharding_constraint(state, on_mesh(specs)), metrics

    def placed_step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        state = jax.lax.with_sharding_constraint(state, shardings(state))
        state, metrics = scan_steps(one_step, steps)(state, batch)
        return state, jax.lax.with_sharding_constraint(metrics, replicated)

    def put_state(state: TrainState) -> TrainState:
        return place(state, shardings(state))

    return Layout(
        devices=parts,
        step=jax.jit(placed_step, donate_argnums=0),
        put_state=put_state,
        move_state=lambda state: move(place, state, shardings(state)),
        put_batch=lambda batch: put_rows(stack_batches(batch, steps, parts), split),
        get_state=lambda state: state,
        init=lambda make_state: put_state(make_on_host(make_state)),
        abstract=lambda state: abstract(state, shardings(state)),
        steps=steps,
        about={"layout": name, **{axis: int(size) for axis, size in mesh.shape.items()}},
    )


def shard_batch(mesh: Mesh, batch: PyTree) -> PyTree:
    """Places a batch of leaves [b, ...] on the mesh, split along b.

    Args:
      mesh: from `data_mesh` or `make_mesh`.
      batch: a tree of leaves [b, ...]; in several processes, this one's part of it.

    Returns:
      A tree of global arrays [b, ...].

    Raises:
      ValueError: b is not divisible by the number of parts.
    """
    parts = batch_parts(mesh)
    return put_rows(stack_batches(batch, 1, parts), NamedSharding(mesh, PartitionSpec(batch_axes(mesh))))


def put_rows(batch: PyTree, split: NamedSharding) -> PyTree:
    """A batch of leaves [b, ...], or this process's part of one, in a sharding."""
    if jax.process_count() == 1:
        return jax.device_put(batch, split)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(split, np.asarray(leaf)), batch)


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """A copy of each leaf [*d] in its sharding.

    A copy, because `device_put` may alias its argument, whose memory a donation would free; `may_alias=False` prevents
    that for a leaf that stays on its device, but not for one that is put on several.
    """
    if jax.process_count() == 1:
        return jax.device_put(copied(tree), shardings)
    if all(isinstance(leaf, jax.Array) and not leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return jax.tree.map(lambda leaf, s: _copy_to(s)(leaf), tree, jax.tree.broadcast(shardings, tree))
    # Equal values on each process: NumPy arguments of jit, and keys as their data, which jit accepts as NumPy arrays.
    plain = jax.tree.map(lambda leaf: np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf), tree)
    kinds = jax.tree.map(lambda leaf: jax.random.key_impl(leaf) if is_key(leaf) else None, tree)
    wrap = lambda value, kind: value if kind is None else jax.random.wrap_key_data(value, impl=kind)
    wrap_all = lambda plain: jax.tree.map(wrap, plain, kinds, is_leaf=lambda node: node is None)
    return jax.jit(wrap_all, out_shardings=shardings)(plain)


@functools.cache
def _copy_to(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    """A copy [*d] to another sharding; compiled once for a sharding and a shape, of which a state has few."""
    return jax.jit(jnp.copy, out_shardings=sharding)


def move(put: Callable[..., PyTree], tree: PyTree, *more: PyTree) -> PyTree:
    """`put(leaf, ...)` of each leaf [*d], which is deleted once it is copied."""

    def move_leaf(leaf: jax.Array, *of_leaf: PyTree) -> jax.Array:
        moved = jax.block_until_ready(put(leaf, *of_leaf))
        leaf.delete()
        return moved

    return jax.tree.map(move_leaf, tree, *more)


def make_on_host(make_state: Callable[[], TrainState]) -> TrainState:
    """The state, made in the host's memory. Under jit each device could make its own part, but compiling every random
    draw takes minutes, and one draw for all of them is replicated on every device."""
    with on_host():
        return make_state()


def abstract(tree: PyTree, shardings: PyTree) -> PyTree:
    """The `ShapeDtypeStruct`s of the leaves [*d] of a tree, with shardings."""
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, shardings)


def stack_batches(batch: PyTree, steps: int, parts: int) -> PyTree:
    """The batch of one call: [b, ...] as it is for one step, [steps, b, ...] from a list of several.

    Raises:
      ValueError: it is not a list of `steps` batches, or a batch (of all processes) does not divide into `parts`.
    """
    batches = [batch] if steps == 1 else batch
    if steps > 1 and (not isinstance(batch, list) or len(batch) != steps):
        got = len(batch) if isinstance(batch, list) else type(batch).__name__
        raise ValueError(f"batch: a list of {steps} batches is needed for {steps} steps a call, got {got}")
    for single in batches:
        check_divides(batch_size_of(single) * jax.process_count(), parts)
    if steps == 1:
        return batch
    on_device = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(batches))
    return jax.tree.map(lambda *leaves: (jnp if on_device else np).stack(leaves), *batches)


def scan_steps(step: Step, steps: int) -> Step:
    """The step, or a scan of it over batches [steps, b, ...], with metrics [steps]."""
    return step if steps == 1 else lambda state, batches: jax.lax.scan(step, state, batches)


def check_steps(steps: int) -> None:
    """Raises `ValueError` below 1."""
    if steps < 1:
        raise ValueError(f"steps: at least 1 a call, got {steps}")


def _check_axis(mesh: Mesh, axis: str) -> None:
    if axis not in mesh.shape:
        raise ValueError(f"mesh: it needs an axis {axis!r}, as of make_mesh; got {dict(mesh.shape)}")
