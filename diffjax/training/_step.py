"""One update of all the state, as a pure function.

    state.key --fold_in(step)--> key --+
    batch -----------------------------+--> loss_fn --grad--> mean over parts, devices --> tx --> params --> ema
    index, total ----------------------+                                |
                                                    finite? the new state : the old one, one step on

A loss is a mean over the samples it is given, and draws the noise of a sample from its global index. So the same
function runs whole under `jax.jit`, where the compiler shards it, and by pieces under `jax.pmap`, where `axis_name`
names the axis that gradients are averaged over: the noise is bitwise the same, the gradients equal to rounding.

Accumulation takes the batch in k parts one after the other, part j being the samples j, j + k, j + 2k, ...: where the
batch is split over devices each keeps its own samples, and nothing moves.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from diffjax._arrays import as_accumulators
from diffjax._typing import Params
from diffjax.training._state import TrainState

LossFn = Callable[[Params, Any, Any, Any, int], tuple[Any, dict[str, Any]]]
Step = Callable[..., tuple[TrainState, dict[str, Array]]]


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    ema: Callable[[Int[Array, ""], Params, Params], Params],
    axis_name: str | None = None,
    accumulate: int = 1,
    levels: int = 0,
) -> Step:
    """Makes `step(state, batch) -> (state, metrics)`; not jitted, so that a layout can be chosen for it.

    Where the loss or the norm of its gradient is not finite, params, ema and opt_state stay as they were, bit for bit,
    and `step` goes on, so that the next batch is another.

    Args:
      loss_fn: `(params, key, batch, index, total) -> (loss, aux)`. `key` is the step's, the same on all devices;
        `index [b]` the global index of each sample and `total` the size of the whole batch; the loss is a mean over
        the samples given, aux a dict.
      tx: the optimiser.
      ema: `(step, params, ema) -> ema`, as of `make_ema`.
      axis_name: the axis of `jax.pmap` that the batch is split over; None where the step sees the whole batch.
      accumulate: how many parts the batch is taken in, one after the other, for memory's sake; the gradient is the
        same to rounding.
      levels: into how many equal parts of [0, 1] the times are sorted to tell the loss by noise level; aux must have
        `t [b]` and `per_sample [b]` for it, as that of `denoising_loss`. 0: not told.

    Returns:
      A function of the state and a batch (a pytree whose leaves have a leading batch axis, normally `(x0, cond)`), and
      of `whole`, `(params) -> params`, by which a layout that splits parameters brings them together for the loss.
      Its metrics are scalars: `loss`, `grad_norm`, each scalar in aux, and `skipped`, 1 where nothing was updated;
      and, with levels, `loss_by_level [levels]` (means, 0 where there was no sample) and `count_by_level [levels]`.

    Raises:
      ValueError: `accumulate` or `levels` out of range; when called, a batch (on one device, under pmap) that
        `accumulate` does not divide, or an aux without what `levels` needs.
    """
    for name, value, least in (("accumulate", accumulate, 1), ("levels", levels, 0)):
        if value < least:
            raise ValueError(f"{name}: at least {least}, got {value}")

    def step(
        state: TrainState, batch: Any, whole: Callable[[Params], Params] = lambda params: params
    ) -> tuple[TrainState, dict[str, Array]]:
        index, total = _positions(batch_size_of(batch), axis_name)
        key = jax.random.fold_in(state.key, state.step)

        def part(batch: Any, index: Any) -> tuple[Any, Any]:
            """What is averaged over parts and devices, and what is summed."""
            loss_of = lambda params: loss_fn(whole(params), key, batch, index, total)
            (loss, aux), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
            scalars = {"loss": loss} | {name: jnp.asarray(value) for name, value in aux.items() if jnp.ndim(value) == 0}
            return as_accumulators((grads, scalars)), _by_level(aux, levels)

        means, sums = part(batch, index) if accumulate == 1 else _accumulate(part, accumulate, batch, index)
        if axis_name is not None:
            means, sums = jax.lax.pmean(means, axis_name), jax.lax.psum(sums, axis_name)
        grads, metrics = means
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)

        def update(old: Any, grads: Any) -> Any:
            params, average, opt_state = old
            updates, opt_state = tx.update(grads, opt_state, as_accumulators(params))
            params = optax.apply_updates(params, updates)
            new = params, ema(state.step, params, average), opt_state
            return jax.tree.map(lambda a, b: a if a.dtype == b.dtype else a.astype(b.dtype), new, old)

        params, average, opt_state = _where(finite, update, (state.params, state.ema, state.opt_state), grads)
        metrics = metrics | {"grad_norm": norm, "skipped": 1 - finite.astype(jnp.float32)}
        if levels:
            metrics["loss_by_level"] = sums["loss"] / jnp.maximum(sums["count"], 1)
            metrics["count_by_level"] = sums["count"]
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


def _where(finite: Array, update: Callable[[Any, Any], Any], old: Any, grads: Any) -> Any:
    """`update(old, grads)` where finite, else `old`.

    On CPU by a branch: selecting number by number reads and copies the whole state once more, and doubles the time of
    an update. Accelerators select within the update's own passes, where a branch would have to wait for the host. One
    of both is traced, by the default backend, as tracing an optimiser twice is felt at the start of a run.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.cond(finite, update, lambda old, grads: old, old, grads)
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), update(old, grads), old)


def _positions(local: int, axis_name: str | None) -> tuple[Array, int]:
    """The global index of each sample of this piece, [local], and the size of the whole batch."""
    if axis_name is None:
        return jnp.arange(local), local
    first = jax.lax.axis_index(axis_name) * local
    return first + jnp.arange(local), jax.lax.axis_size(axis_name) * local


def _accumulate(part: Callable[[Any, Any], tuple[Any, Any]], parts: int, batch: Any, index: Array) -> tuple[Any, Any]:
    """The mean of the first and the sum of the second thing that `part` returns, over the parts of a batch."""
    size = len(index)
    if size % parts:
        raise ValueError(f"accumulate: a batch of {size} samples cannot be taken in {parts} equal parts")
    cut = lambda leaf: jnp.moveaxis(leaf.reshape(size // parts, parts, *leaf.shape[1:]), 1, 0)
    pieces = jax.tree.map(cut, (batch, index))
    first = jax.tree.map(lambda leaf: leaf[0], pieces)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(part, *first))
    add = lambda total, piece: (jax.tree.map(jnp.add, total, part(*piece)), None)
    (means, sums), _ = jax.lax.scan(add, zeros, pieces)
    return jax.tree.map(lambda total: total / parts, means), sums


def _by_level(aux: dict[str, Any], levels: int) -> dict[str, Array]:
    """The sum of losses and the number of samples in each of `levels` equal parts of time; nothing for 0."""
    if not levels:
        return {}
    missing = [name for name in ("t", "per_sample") if name not in aux]
    if missing:
        raise ValueError(f"levels: {levels}, but the loss tells no {' and no '.join(missing)}; it has {sorted(aux)}")
    level = jnp.clip(jnp.floor(aux["t"] * levels), 0, levels - 1)
    here = level[:, None] == jnp.arange(levels)
    losses = jnp.where(here, aux["per_sample"][:, None], 0)
    return {"loss": jnp.sum(losses, axis=0), "count": jnp.sum(here, axis=0, dtype=losses.dtype)}
