"""What is not finite is never saved, and is named.

A step whose loss or gradients are not finite changes nothing (`make_train_step`) and is counted; ten in a row end the
run. An update can still leave a parameter infinite (an infinite learning rate), which the next loss would show one step
too late for a checkpoint: so the state is looked at before it is saved, on the devices, and one bit is read. In the
optimiser's state only NaN counts: infinity is a number there (`optax.contrib.reduce_on_plateau` begins with it), and
gradients whose norm is finite make none.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.training._about import leaves_by_path
from diffjax.training._distributed import agree, gather_texts
from diffjax.training._state import TrainState


class NotFinite(ArithmeticError):
    """Raised by `train` when too many steps in a row, or a parameter, are NaN or infinite; nothing was saved since."""


def check_parameters(step: int, state: TrainState) -> None:
    """Raises `NotFinite` naming the first leaf of params and ema that is NaN or infinite, of opt_state that is NaN.

    Args:
      step: how many updates it has had.
      state: placed, wherever: it is reduced there and not copied. It waits for the state.
    """
    if bool(_is_sound(state.params, state.ema, state.opt_state)):
        return
    for part in ("params", "ema", "opt_state"):
        for path, leaf in leaves_by_path(getattr(state, part)).items():
            if not bool(_is_sound(leaf) if part != "opt_state" else _is_sound((), (), leaf)):
                name = f"{part}/{path}".removesuffix("/")
                raise NotFinite(f"step {step}: {name} is not finite; the checkpoints are as they were")


@jax.jit
def _is_sound(params: Any, ema: Any = (), opt_state: Any = ()) -> jax.Array:
    numbers = lambda tree: [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    found = [jnp.all(jnp.isfinite(leaf)) for leaf in numbers((params, ema))]
    return jnp.all(jnp.asarray(found + [~jnp.any(jnp.isnan(leaf)) for leaf in numbers(opt_state)]))


def too_many_skipped(steps: Sequence[int], read: Callable[[int], Any], batch_size: int) -> NotFinite:
    """The error for steps that were skipped one after the other; every process calls it, and gets the same.

    Args:
      steps: their numbers, ascending; step s was made from batch s - 1, that is from the positions (s - 1) batch_size
        to s batch_size - 1 of the data.
      read: batch number -> this process's rows of it, leaves [rows, ...]; read again, to find what is wrong in it.
      batch_size: of the whole batch.
    """
    own = jax.process_index() * batch_size // jax.process_count()
    first, last = (steps[0] - 1) * batch_size, steps[-1] * batch_size - 1
    try:
        rows = agree(lambda: [(s - 1) * batch_size + own + row for s in steps for row in _rows_not_finite(read(s - 1))])
        why = _why(sorted(int(word) for text in gather_texts(" ".join(map(str, rows))) for word in text.split()))
    except Exception as error:  # `agree` raises in all
        why = f"they cannot be read again: {error}"
    return NotFinite(
        f"{len(steps)} steps in a row, {steps[0]} to {steps[-1]}, had a loss or gradients that are not finite and "
        f"were skipped; their batches are the positions {first} to {last} of the data; {why}; nothing was saved since"
    )


def _why(bad: Sequence[int]) -> str:
    shown = ", ".join(map(str, bad[:20])) + (f" and {len(bad) - 20} more" if len(bad) > 20 else "")
    return f"not finite in the data: positions {shown}" if bad else "these are finite, it is the loss or its gradients"


def _rows_not_finite(batch: Any) -> list[int]:
    bad: set[int] = set()
    for leaf in jax.tree.leaves(batch):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            values = np.asarray(leaf, np.float64)
            bad.update(np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1)).tolist())
    return sorted(bad)
