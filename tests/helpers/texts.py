"""A text, an image and small networks that take a text, for the tests of networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.networks import DiT, Text, UViT

KEY = jax.random.key(0)
RNG = np.random.default_rng(3)
IMAGE = jnp.asarray(RNG.normal(size=(3, 4, 6, 2)), jnp.float32)
C_NOISE = jnp.array([-1.0, 0.0, 1.0])
MASK = np.array([[True, True, False], [True, False, False], [False, False, False]])
TEXT = Text(jnp.asarray(RNG.normal(size=(3, 3, 5)), jnp.float32), jnp.asarray(MASK))
TINY = {"width": 16, "depth": 2, "heads": 2, "text_width": 5}
WITH_TEXT = {
    "cross": partial(DiT, **TINY, qk_norm=True, norm_affine=True),
    "joint": partial(DiT, **TINY, joint=True, rope=100.0),
    "uvit": partial(UViT, **TINY | {"depth": 3}),
}
