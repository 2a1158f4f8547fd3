"""An optimiser whose parameters end every update on a set: tx, then a projection.

    params --tx--> params + updates --project--> new params;   the updates told are new - old

Source: projected gradient descent (Bertsekas 1999, section 2.3).
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from diffjax._typing import Params


def projected(tx: optax.GradientTransformation, project: Callable[[Params], Params]) -> optax.GradientTransformation:
    """`tx`, followed by `project`.

    EDM2's forced weight normalisation is `projected(tx, networks.normalise_weights)`.

    Args:
      tx: an optimiser.
      project: `params -> params`, a pytree of the same shapes, such as a projection onto a set of weights.

    Returns:
      An optimiser with the state of `tx`.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = tx.update(updates, state, params)
        after = project(optax.apply_updates(params, updates))
        return jax.tree.map(lambda new, old: new - old, after, params), state

    return optax.GradientTransformation(tx.init, update)
