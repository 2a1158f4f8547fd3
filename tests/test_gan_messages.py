"""What the parts of a user's own GAN refuse, and what they say."""

import jax
import jax.numpy as jnp
import pytest

from diffjax import from_linen, gan, networks
from diffjax.training import Context

KEY = jax.random.key(0)
X0 = jax.random.normal(KEY, (6, 2))
PARTS = from_linen(networks.Perceptron((2,), 4, 1)), from_linen(networks.Discriminator(4, 1))
MODEL = gan.GAN(*PARTS, latents=3)


@pytest.mark.parametrize(
    ("batch", "got"),
    [(X0, r"float32 \(6, 2\)"), ((X0,), "tuple of 1"), ({"x": X0}, "dict"), ((X0, None, None), "tuple of 3")],
)
@pytest.mark.parametrize("name", ["discriminator", "generator"])
def test_a_batch_that_is_no_pair_is_named(name, batch, got):
    """Six points would be unpacked as six conditions, and two as data and a condition."""
    loss_fn = gan.training_losses(MODEL)[name]
    params = MODEL.init(KEY, X0)
    with pytest.raises(ValueError, match=rf"^batch: \(x0, cond\) is needed, cond None where there is none, got {got}"):
        loss_fn(params, batch, Context(KEY, jnp.zeros((), int), {}, jnp.arange(6), 6, lambda x: x))
