"""One update of all the state, as a pure function.

    state.key --fold_in(step)--> key --+
    batch -----------------------------+--> loss_fn --grad--> mean over devices --> tx --> params --> ema
    index, total ----------------------+

A loss is a mean over the samples it is given, and draws the noise of a sample from its global index. So the same
function runs whole under `jax.jit`, where the compiler shards it, and by pieces under `jax.pmap`, where `axis_name`
names the axis that gradients are averaged over: the noise is bitwise the same, the gradients equal to rounding.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from diffjax._typing import Params
from diffjax.training._state import TrainState

LossFn = Callable[[Params, Any, Any, Any, int], tuple[Any, dict[str, Any]]]
Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    ema: Callable[[Int[Array, ""], Params, Params], Params],
    axis_name: str | None = None,
) -> Step:
    """Makes `step(state, batch) -> (state, metrics)`; not jitted, so that a layout can be chosen for it.

    Args:
      loss_fn: `(params, key, batch, index, total) -> (loss, aux)`. `key` is the step's, the same on all devices;
        `index [b]` the global index of each sample and `total` the size of the whole batch; the loss is a mean over
        the samples given, aux a dict.
      tx: the optimiser.
      ema: `(step, params, ema) -> ema`, as of `make_ema`.
      axis_name: the axis of `jax.pmap` that the batch is split over; None where the step sees the whole batch.

    Returns:
      A function of the state and a batch (a pytree whose leaves have a leading batch axis, normally `(x0, cond)`).
      Its metrics are scalars: `loss`, `grad_norm` and each scalar in aux.
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        index, total = _positions(batch_size_of(batch), axis_name)
        key = jax.random.fold_in(state.key, state.step)
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, aux), grads = gradient(state.params, key, batch, index, total)
        scalars = {"loss": loss} | {name: value for name, value in aux.items() if jnp.ndim(value) == 0}
        if axis_name is not None:
            grads, scalars = jax.lax.pmean((grads, scalars), axis_name)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        average = ema(state.step, params, state.ema)
        metrics = scalars | {"grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, average, opt_state, state.key), metrics

    return step


def batch_size_of(batch: Any) -> int:
    """The length of the leading axis that all leaves of a batch share.

    Raises:
      ValueError: the batch is empty, or its leaves disagree.
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or sizes == {()}:
        found = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
        raise ValueError(f"batch: its arrays must share a leading batch axis, got shapes {found}")
    return sizes.pop()[0]


def _positions(local: int, axis_name: str | None) -> tuple[Array, int]:
    """The global index of each sample of this piece, [local], and the size of the whole batch."""
    if axis_name is None:
        return jnp.arange(local), local
    first = jax.lax.axis_index(axis_name) * local
    return first + jnp.arange(local), jax.lax.axis_size(axis_name) * local
