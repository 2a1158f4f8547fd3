"""Parameters that are kept as they were drawn: the frequencies and phases of random waves.

Their gradient is zero, but an optimiser's weight decay would shrink them all the same.
"""

from typing import Any

import jax

from diffjax._typing import Params

KEPT = ("time_proj/scale", "fourier/frequencies", "fourier/phases")
"""Where `Fourier` (of `UNet2D`) and `MPFourier` (of `EDM2UNet`) have them: the last two names of a path."""


def trained(params: Params) -> Any:
    """A bool for each parameter, a tree of the shape of `params`: False for one that is never trained.

    >>> import optax
    >>> tx = optax.adamw(1e-4, weight_decay=0.1, mask=trained)
    >>> trained({"time_proj": {"scale": 1.0}, "norm": {"scale": 1.0}})
    {'norm': {'scale': True}, 'time_proj': {'scale': False}}
    """
    last = lambda path: jax.tree_util.keystr(path[-2:], simple=True, separator="/")
    return jax.tree_util.tree_map_with_path(lambda path, leaf: last(path) not in KEPT, params)
