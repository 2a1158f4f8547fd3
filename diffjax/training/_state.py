"""The state of a training run: all that one step passes to the next.

    network.init --> params --trained leaves--> ema
                       |
                       +--tx.init--> opt_state          step = 0,   key = fold_in(key, 1)

Every random number of step n is drawn from `fold_in(state.key, n)`, and batch n is a function of the seed and n: so
the state is all that needs saving, and the step is the position in the data.
"""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias, TypeGuard, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from diffjax._arrays import as_accumulators, copied, is_concrete
from diffjax._typing import Cond, Key, Network, Params
from diffjax.training._objective import (
    Context,
    Objective,
    as_objectives,
    check_average_names,
    split_frozen,
    trained_mask,
)

Optimised: TypeAlias = optax.GradientTransformation | Objective | Sequence[Objective]
"""What determines the optimiser's state: objectives, or the optimiser of a single one that trains all of params."""


class TrainState(NamedTuple):
    """The state of a training run, a pytree.

    Attributes:
      step: how many steps were made, int32 [].
      params: the trained parameters, and frozen ones that losses read; any pytree of arrays [*d].
      ema: a moving average of params, float32 at least, None in the place of parameters that no objective trains; or
        several, a dict name -> average.
      opt_state: the optimiser's, of parameters in float32 at least, since its moments are averages, too; of several
        objectives a dict name -> the state of its optimiser.
      key: a typed key []; step n draws from `fold_in(key, n)`.
    """

    step: Int[Array, ""]
    params: Params
    ema: Params
    opt_state: PyTree
    key: Key


def state_from_params(key: Key, params: Params, tx: Optimised, *, averages: Sequence[str] = ()) -> TrainState:
    """The state at step 0, from parameters of any structure, such as those of a network and of a learned process.

    Args:
      key: the key [] that the steps will draw from.
      params: any pytree of arrays [*d]; they are copied, so that the state may be donated.
      tx: the objectives that `make_train_step` is given; or, of one that trains all of params, its optimiser.
      averages: names of averages, where `make_train_step` is given them by name; by default there is one, without.

    Returns:
      The state; its arrays have the shapes [*d] of params.

    Raises:
      ValueError: an objective trains what params do not have, or names of averages are not different strings.

    Example:
      >>> state = state_from_params(jax.random.key(0), {"w": jnp.ones(3)}, optax.adam(1e-3))
      >>> int(state.step), state.ema["w"].shape
      (0, (3,))
    """
    check_average_names(averages)
    named = as_objectives(Objective(_no_loss, tx) if _is_optimiser(tx) else cast("Objective | Sequence[Objective]", tx))
    # Strongly typed, as a step returns them: a process's weakly typed numbers would compile the step twice.
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), params)
    masks = {name: trained_mask(objective, params) for name, objective in named.items()}
    trained = as_accumulators(split_frozen([*masks.values()], params)[0])
    ema = {name: copied(trained) for name in averages} if averages else copied(trained)
    opt_states = {
        name: _init(objective.tx, copied(eqx.filter(trained, masks[name]))) for name, objective in named.items()
    }
    opt_state = opt_states if len(named) > 1 else next(iter(opt_states.values()))
    return TrainState(jnp.zeros((), jnp.int32), copied(params), ema, opt_state, key)


def _is_optimiser(tx: object) -> TypeGuard[optax.GradientTransformation]:
    return hasattr(tx, "init") and hasattr(tx, "update")


def _no_loss(params: Params, batch: PyTree, context: Context) -> tuple[Array, dict[str, Array]]:
    """The loss where only an optimiser is given: a state does not depend on it."""
    raise NotImplementedError


def averaged_params(state: TrainState, name: str | None = None) -> Params:
    """All parameters, the trained ones replaced by their average: what samplers and exports need.

    Args:
      state: the state of a run.
      name: of the average, where averages have names.

    Returns:
      A pytree of arrays [*d] like `state.params`, not copied.

    Raises:
      ValueError: there is no average of that name.
    """
    if name is None:
        return eqx.combine(state.ema, state.params)
    if not isinstance(state.ema, dict) or name not in state.ema:
        names = ", ".join(state.ema) if isinstance(state.ema, dict) else "one without a name"
        raise ValueError(f"name: the state has no average {name!r}; there are: {names}")
    return eqx.combine(state.ema[name], state.params)


def _init(tx: optax.GradientTransformation, params: Params) -> PyTree:
    """`tx.init(params)`, jitted: one program instead of one for each leaf, on the device of params, if it is one.

    An optimiser that depends on values, as it cannot under jit, is run eagerly.
    """
    leaves = jax.tree.leaves(params)
    devices = {device for leaf in leaves for device in leaf.devices()} if is_concrete(leaves) else set()
    if len(devices) == 1:
        with contextlib.suppress(jax.errors.ConcretizationTypeError), jax.default_device(*devices):
            return jax.jit(tx.init)(params)
    return tx.init(params)


def init_state(
    key: Key,
    network: Network,
    tx: Optimised,
    x0: Float[Array, "b *d"],
    cond: Cond = None,
    *,
    averages: Sequence[str] = (),
) -> TrainState:
    """The state at step 0, with newly initialised parameters for samples and conditions of given shapes.

    Args:
      key: a key []; `fold_in(key, 0)` initialises the network, `fold_in(key, 1)` is the key of the steps.
      network: its `init` is called once, with noise level 0.
      tx: as in `state_from_params`.
      x0: samples [b, *d] of the training data's shape and dtype; b = 1 suffices.
      cond: conditions for them, leaves [b, ...], or None.
      averages: as in `state_from_params`.

    Returns:
      The state; its parameters have the shapes that `network.init` gives them.
    """
    init_key, step_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    params = network.init(init_key, x0, jnp.zeros(x0.shape[0], x0.dtype), cond)
    return state_from_params(step_key, params, tx, averages=averages)
