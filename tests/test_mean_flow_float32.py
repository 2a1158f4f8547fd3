"""MeanFlow's loss as users run it: float32, our networks, split over devices, with labels, dropout and bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import perturbed, quick_jit

import diffjax as dj
from diffjax import losses, networks
from diffjax.flow_maps import GuidedVelocity, PartlyEqual, SortedPairs, mean_flow_loss

N, CLASSES = 8, 3
X0 = jnp.asarray(np.random.default_rng(0).normal(size=(N, 2)), jnp.float32)
LABELS = jnp.arange(N) % CLASSES


def case(**fields):
    process = dj.Cosine()
    network = dj.from_linen(networks.PlainMLP(width=4, depth=1, **fields))
    cond = LABELS if "num_classes" in fields else None
    params = perturbed(network.init(jax.random.key(0), X0, jnp.zeros((N, 2)), cond))
    diffusion = dj.Diffusion(network, process, dj.parameterisation.EDMPrediction(1.0, clock="angle"))
    return diffusion, params, PartlyEqual(SortedPairs(dj.process.LogitNormalTimes(process, -0.4, 1.0)), 0.5)


@pytest.mark.slow
def test_a_batch_over_devices_is_the_whole_batch():
    """With labels, some of them dropped, and guidance: the loss and each sample's error."""
    diffusion, params, pairs = case(num_classes=CLASSES)
    guidance = GuidedVelocity(CLASSES, 2.0, 0.5, 0.1, 0.9)

    def loss(params, x0, label, index):
        label = losses.drop_condition(jax.random.key(1), label, CLASSES, 0.3, index=index)
        choices = {"pairs": pairs, "improved": True, "guidance": guidance, "power": 0.5, "index": index, "total": N}
        return mean_flow_loss(diffusion, params, jax.random.key(2), x0, label, **choices)

    whole, aux = quick_jit(loss)(params, X0, LABELS, jnp.arange(N))
    split = [part.reshape(2, N // 2, *part.shape[1:]) for part in (X0, LABELS, jnp.arange(N))]
    parts, part_aux = jax.pmap(loss, in_axes=(None, 0, 0, 0))(params, *split)
    np.testing.assert_allclose(parts.mean(), whole, rtol=1e-6)
    for name in ("t", "s", "per_sample", "error"):
        np.testing.assert_allclose(part_aux[name].ravel(), aux[name], rtol=2e-5, atol=1e-6, err_msg=name)
    assert np.sum(np.isclose(aux["t"], aux["s"], atol=1e-6)) == N // 2
    assert len(set(np.asarray(aux["error"]).tolist())) == N


@pytest.mark.slow
def test_dropout_is_on_and_a_network_may_be_in_bfloat16():
    results = {}
    for name, fields in {"plain": {}, "dropout": {"dropout": 0.5}, "bfloat16": {"dtype": jnp.bfloat16}}.items():
        diffusion, params, pairs = case(**fields)
        loss = lambda p, diffusion=diffusion, pairs=pairs: mean_flow_loss(
            diffusion, p, jax.random.key(2), X0, pairs=pairs
        )
        value, aux = quick_jit(loss)(params)
        assert value.dtype == aux["error"].dtype == jnp.float32
        results[name] = np.asarray(aux["error"])
        t, s, _ = quick_jit(lambda key, pairs=pairs: pairs(key, N))(jax.random.split(jax.random.key(2), 3)[0])
        np.testing.assert_allclose(aux["t"], t, rtol=1e-6)
        np.testing.assert_allclose(aux["s"], s, rtol=1e-6)
    np.testing.assert_allclose(results["bfloat16"], results["plain"], rtol=0.05, atol=0.05)
    assert np.any(results["bfloat16"] != results["plain"])
    assert np.abs(results["dropout"] - results["plain"]).max() > 1e-3
