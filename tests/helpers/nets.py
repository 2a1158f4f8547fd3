"""Helpers of the tests of networks."""

from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

# These programs run once: half of the time to compile them is optimising.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def perturbed(params, seed=0, size=0.1):
    """Parameters moved off zero, so that zero-initialised layers let signals through (on the host: no compiling)."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf + size * rng.normal(size=leaf.shape), leaf.dtype), params)


@contextmanager
def dropouts():
    """The set of (module, number) of every dropout that is called meanwhile, not being deterministic."""
    found = set()

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout) and not context.module.deterministic:
            *path, name = context.module.path
            found.add(("/".join(path), int(name.removeprefix("Dropout_"))))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        yield found
