"""One step function, laid out over devices in one of four ways.

    layout    state                          batch [b, ...]                gradients
    jit       replicated                     split over the mesh           the compiler adds the means
    fsdp      split along a long axis        split over the mesh           the compiler gathers and scatters
    tensor    layers split by rules          split over data and fsdp      the compiler does as the layers need
    pmap      a copy a device                [devices, b/devices, ...]     the step adds the means (axis_name)

A `Layout` is a few functions, so the loop knows nothing of devices. Steps are compiled once, and the state given to one
is donated: use what it returns. The first three are one function under `jax.jit` with other `NamedSharding`s; pmap is
in `_pmap.py`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffjax._arrays import copied, is_key, on_host
from diffjax.training._mesh import FSDP, TENSOR, batch_axes, batch_parts, check_divides, data_mesh, make_mesh
from diffjax.training._rules import TENSOR_RULES, Places, Rules, everywhere, fsdp_places, tensor_places, without_fsdp
from diffjax.training._state import TrainState
from diffjax.training._step import Step, batch_size_of

MIN_SIZE = 128
"""Arrays with fewer numbers are not worth splitting: gathering them costs more than they weigh."""


class Layout(NamedTuple):
    """A step function placed on devices.

    Attributes:
      devices: how many devices, or groups of them, a batch is split over.
      step: `(state, batch) -> (state, metrics)` on placed arguments; compiled; the state is donated. Metrics are whole
        on every device: scalars, or [k] with k steps a call.
      put_state: places a state on the devices, a copy; an `init_state` or one that was restored.
      move_state: the same for a state that nothing else refers to, such as one just restored into `abstract`: each
        array is deleted when its copy is there, so that there are never two states at a time.
      put_batch: splits a batch of leaves [b, ...] over the devices; ValueError where b does not divide. With k steps a
        call it takes a list of k batches. On several processes each gives its own part of the global batch.
      get_state: one ordinary state from a placed one, its arrays still where they are.
      init: `(make_state) -> placed state`: what `make_state()` makes on the host's CPU, so that a state which is too
        large for one device is never on one.
      abstract: of a placed state, or one from `jax.eval_shape`, the `ShapeDtypeStruct`s with shardings that a
        checkpoint is restored into; what comes of that goes through `move_state`.
      steps: how many optimiser steps a call of `step` makes.
      about: in words, for a log or a checkpoint: the layout's name and the size of each axis.
    """

    devices: int
    step: Step
    put_state: Callable[[TrainState], TrainState]
    move_state: Callable[[TrainState], TrainState]
    put_batch: Callable[[Any], Any]
    get_state: Callable[[TrainState], TrainState]
    init: Callable[[Callable[[], TrainState]], TrainState]
    abstract: Callable[[TrainState], TrainState]
    steps: int
    about: dict[str, Any]


def jit_layout(step: Step, mesh: Mesh | None = None, *, steps: int = 1) -> Layout:
    """The step under `jax.jit`: state replicated, batch [b, ...] split, gradients averaged by the compiler.

    Args:
      step: from `make_train_step` without an axis name.
      mesh: from `data_mesh` or `make_mesh`; all devices by default.
      steps: optimiser steps a call.
    """
    return _jit_layout("jit", step, data_mesh() if mesh is None else mesh, everywhere, steps)


def fsdp_layout(step: Step, mesh: Mesh | None = None, *, min_size: int = MIN_SIZE, steps: int = 1) -> Layout:
    """Parameters, averages and optimiser state split over the axis "fsdp", the batch [b, ...] over "data" and "fsdp".

    A device keeps its part of the state; while a step runs it has the whole parameters and gradient besides.

    Args:
      step: from `make_train_step` without an axis name.
      mesh: from `make_mesh(fsdp=n)`; all devices by default.
      min_size: arrays with fewer numbers stay whole on each device.
      steps: optimiser steps a call.

    Raises:
      ValueError: the mesh has no axis "fsdp"; when a state is placed, none of its arrays can be split.
    """
    mesh = make_mesh(fsdp=jax.device_count()) if mesh is None else mesh
    _check_axis(mesh, FSDP)
    return _jit_layout("fsdp", step, mesh, fsdp_places(mesh, min_size), steps)


def tensor_layout(
    step: Step, mesh: Mesh | None = None, rules: Rules = TENSOR_RULES, *, min_size: int = MIN_SIZE, steps: int = 1
) -> Layout:
    """Layers split over the axis "tensor" by rules; the batch [b, ...] over "data" and "fsdp", as `fsdp_layout`.

    Args:
      step: from `make_train_step` without an axis name.
      mesh: from `make_mesh(tensor=n)`; all devices by default.
      rules: a table of (end of an array's path, a regular expression; PartitionSpec); the first that fits holds, and
        arrays that none fits stay whole. By default those of our networks' attention and residual blocks.
      min_size: of arrays that are split over "fsdp" as well.
      steps: optimiser steps a call.

    Raises:
      ValueError: the mesh has no axis "tensor"; when a state is placed, a rule does not divide a parameter that it
        fits, or no rule fits any.
    """
    mesh = make_mesh(tensor=jax.device_count()) if mesh is None else mesh
    _check_axis(mesh, TENSOR)
    return _jit_layout("tensor", step, mesh, tensor_places(mesh, rules, min_size), steps)


def _jit_layout(name: str, step: Step, mesh: Mesh, places: Places, steps: int) -> Layout:
    check_steps(steps)
    parts = batch_parts(mesh)
    rows = PartitionSpec(batch_axes(mesh))
    split = NamedSharding(mesh, rows if steps == 1 else PartitionSpec(None, *rows))
    whole = NamedSharding(mesh, PartitionSpec())

    def on_mesh(specs: Any) -> Any:
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)

    def shardings(state: Any) -> Any:
        return on_mesh(places(state))

    def one_step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        """The new state stays where the old one is. Parameters are brought together for the loss: left to itself, the
        compiler may send the activations of each layer around instead, which are larger."""
        there = places(state)
        if mesh.shape.get(FSDP, 1) == 1:
            state, metrics = step(state, batch)
        else:
            together = on_mesh(without_fsdp(there.params))
            state, metrics = step(state, batch, lambda params: jax.lax.with_sharding_constraint(params, together))
        return jax.lax.with_sharding_constraint(state, on_mesh(there)), metrics

    def placed_step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        state = jax.lax.with_sharding_constraint(state, shardings(state))
        state, metrics = several(one_step, steps)(state, batch)
        return state, jax.lax.with_sharding_constraint(metrics, whole)

    def put_state(state: TrainState) -> TrainState:
        return place(state, shardings(state))

    return Layout(
        devices=parts,
        step=jax.jit(placed_step, donate_argnums=0),
        put_state=put_state,
        move_state=lambda state: move(place, state, shardings(state)),
        put_batch=lambda batch: put_rows(stack(batch, steps, parts), split),
        get_state=lambda state: state,
        init=lambda make_state: put_state(made_on_host(make_state)),
        abstract=lambda state: abstract(state, shardings(state)),
        steps=steps,
        about={"layout": name, **{axis: int(size) for axis, size in mesh.shape.items()}},
    )


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """Places a batch of leaves [b, ...] on the mesh, split along b.

    Raises:
      ValueError: b is not divisible by the number of parts.
    """
    parts = batch_parts(mesh)
    return put_rows(stack(batch, 1, parts), NamedSharding(mesh, PartitionSpec(batch_axes(mesh))))


def put_rows(batch: Any, split: NamedSharding) -> Any:
    """A batch, or this process's part of one, in its sharding."""
    if jax.process_count() == 1:
        return jax.device_put(batch, split)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(split, np.asarray(leaf)), batch)


def place(tree: Any, shardings: Any) -> Any:
    """A copy of each leaf in its sharding.

    A copy, because placed arrays share the memory of the one they came from, which a donation would free;
    `device_put(may_alias=False)` prevents that where a leaf is, but not on its way to several devices.
    """
    if jax.process_count() == 1:
        return jax.device_put(copied(tree), shardings)
    if all(isinstance(leaf, jax.Array) and not leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return jax.tree.map(lambda leaf, s: _copy_to(s)(leaf), tree, jax.tree.broadcast(shardings, tree))
    # The same values on each process: NumPy arguments of jit, keys as their data, which it may not see otherwise.
    plain = jax.tree.map(lambda leaf: np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf), tree)
    kinds = jax.tree.map(lambda leaf: jax.random.key_impl(leaf) if is_key(leaf) else None, tree)
    back = lambda value, kind: value if kind is None else jax.random.wrap_key_data(value, impl=kind)
    whole = lambda plain: jax.tree.map(back, plain, kinds, is_leaf=lambda node: node is None)
    return jax.jit(whole, out_shardings=shardings)(plain)


@functools.cache
def _copy_to(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    """Compiled once for a sharding and a shape, of which a state has few."""
    return jax.jit(jnp.copy, out_shardings=sharding)


def move(put: Callable[..., Any], tree: Any, *more: Any) -> Any:
    """`put(leaf, ...)` of each leaf, which is deleted when its copy is there."""

    def one(leaf: Any, *its: Any) -> Any:
        moved = jax.block_until_ready(put(leaf, *its))
        leaf.delete()
        return moved

    return jax.tree.map(one, tree, *more)


def made_on_host(make_state: Callable[[], TrainState]) -> TrainState:
    """The state, made where there is room for all of it. Under jit each device could make its own part, but compiling
    every random draw takes minutes, and one draw for all of them is whole on every device."""
    with on_host():
        return make_state()


def abstract(tree: Any, shardings: Any) -> Any:
    """The shapes and dtypes of a tree in the shardings given."""
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, shardings)


def stack(batch: Any, steps: int, parts: int) -> Any:
    """The batch of one call: as it is for one step, stacked along a new first axis from a list of several.

    Raises:
      ValueError: it is not a list of `steps` batches, or a batch (of all processes) does not divide into `parts`.
    """
    batches = [batch] if steps == 1 else batch
    if steps > 1 and (not isinstance(batch, list) or len(batch) != steps):
        found = len(batch) if isinstance(batch, list) else type(batch).__name__
        raise ValueError(f"batch: a list of {steps} batches is needed for {steps} steps a call, got {found}")
    for each in batches:
        check_divides(batch_size_of(each) * jax.process_count(), parts)
    if steps == 1:
        return batch
    on_device = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(batches))
    return jax.tree.map(lambda *leaves: (jnp if on_device else np).stack(leaves), *batches)


def several(step: Step, steps: int) -> Step:
    """The step, or `steps` of them one after the other on batches [steps, b, ...], metrics stacked."""
    return step if steps == 1 else lambda state, batches: jax.lax.scan(step, state, batches)


def check_steps(steps: int) -> None:
    """Raises `ValueError` below 1."""
    if steps < 1:
        raise ValueError(f"steps: at least 1 a call, got {steps}")


def _check_axis(mesh: Mesh, axis: str) -> None:
    if axis not in mesh.shape:
        raise ValueError(f"mesh: it needs an axis {axis!r}, as of make_mesh; got {dict(mesh.shape)}")
