"""What training carries from step to step.

    network.init --> params --copy--> ema
                       |
                       +--tx.init--> opt_state          step = 0,   key = fold_in(key, 1)

Every random number of step n is drawn from `fold_in(state.key, n)`, and batch n is a function of the seed and n: the
state is all there is to save, and the step is the position in the data.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from diffjax._arrays import as_accumulators, copied, is_concrete
from diffjax._typing import Cond, Key, Network, Params


class TrainState(NamedTuple):
    """All of a training run, a pytree.

    Attributes:
      step: how many updates were made, int32 [].
      params: what the optimiser moves; any pytree.
      ema: a moving average of params, of the same structure, float32 at least; or several, a dict name -> average.
      opt_state: the optimiser's, of parameters in float32 at least: its moments are averages, too.
      key: a typed key; step n draws from `fold_in(key, n)`.
    """

    step: Int[Array, ""]
    params: Params
    ema: Params
    opt_state: Any
    key: Key


def state_from_params(
    key: Key, params: Params, tx: optax.GradientTransformation, *, averages: Sequence[str] = ()
) -> TrainState:
    """A run at step 0 from parameters of any structure, such as a network's beside a learned process.

    Args:
      key: the key that the steps will draw from.
      params: any pytree of arrays; not aliased, so that the state may be donated.
      tx: the optimiser.
      averages: names of several averages, for `make_emas`; by default ema is one, a tree like params.
    """
    # Strongly typed, as a step returns them: a process's weakly typed numbers would compile the step twice.
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), params)
    wide = as_accumulators(params)
    ema = {name: copied(wide) for name in averages} if averages else copied(wide)
    return TrainState(jnp.zeros((), jnp.int32), copied(params), ema, _init(tx, copied(wide)), key)


def _init(tx: optax.GradientTransformation, params: Params) -> Any:
    """`tx.init(params)`: one program in place of one for each zero, where params are on one device, and there too.

    An optimiser that looks at values, which it cannot under jit, is run as it is.
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
    tx: optax.GradientTransformation,
    x0: Float[Array, "b *d"],
    cond: Cond = None,
    *,
    averages: Sequence[str] = (),
) -> TrainState:
    """A run at step 0: fresh parameters for samples and conditions like those given.

    Args:
      key: initialises the network and, derived, becomes the key of the steps.
      network: its `init` is called once, with noise level 0.
      tx: the optimiser.
      x0: samples [b, *d] of the shape and dtype to come; b = 1 will do.
      cond: conditions for them, leaves [b, ...], or None.
      averages: as `state_from_params`'s.
    """
    init_key, step_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    params = network.init(init_key, x0, jnp.zeros(x0.shape[0], x0.dtype), cond)
    return state_from_params(step_key, params, tx, averages=averages)
