"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import guidance, interop, inverse, likelihood, metrics, networks, operators

README = (Path(__file__).parent.parent / "README.md").read_text()


def block(name, language):
    """The fenced block right after the line `<!-- run: name -->`."""
    found = re.search(rf"<!-- run: {name} -->\n```{language}\n(.*?)```", README, re.DOTALL)
    assert found, f"README has no {language} block after <!-- run: {name} -->"
    return found.group(1)


@pytest.mark.parametrize("name", ["main", "test"])
def test_the_commands_set_themselves_up(name):
    assert block(name, "bash").startswith("python3 -m venv .venv\n.venv/bin/pip install")


@pytest.mark.slow
def test_the_research_example():
    """About twenty statements; with a tenth of its steps it runs, and its samplers move noise to where the data is."""
    code = block("example", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 32
    space = {}
    exec(code.replace("range(1000)", "range(150)"), space)
    real = space["source"](1, 0, 4000)[0]
    for name in ("mine", "ours"):
        x = np.asarray(space[name])
        assert x.shape == (1000, 2)
        assert np.all(np.abs(x.mean(0) - real.mean(0)) < 0.3)
        assert np.all(np.abs(x.std(0) / real.std(0) - 1) < 0.3)
    assert np.all(np.isfinite(space["nats"]))


@pytest.fixture(scope="module")
def names():
    """What the recipes take as given, in the plane: points near (1, 1) and (-1, -1), and a network of five classes."""
    process, key = dj.VariancePreserving(), jax.random.key(0)
    near = lambda *means: dj.GaussianMixture(jnp.asarray(means), 0.04 * jnp.stack([jnp.eye(2)] * len(means)))
    known = near([1.0, 1.0], [-1.0, -1.0])
    network = dj.from_linen(networks.MLP(width=16, depth=1, num_classes=5))
    labels = jnp.arange(4)
    params = network.init(key, jnp.zeros((4, 2)), jnp.zeros(4), labels)
    parts = {"network": network, "process": process, "parameterisation": dj.VPrediction()}
    x0 = jnp.asarray([[1.0, 1.0], [-1.0, -1.0], [1.1, 0.9], [-0.9, -1.1]])
    return {
        **{"dj": dj, "guidance": guidance, "inverse": inverse, "likelihood": likelihood, "metrics": metrics},
        **{"operators": operators, "key": key, "process": process, "x0": x0, "std": 0.1},
        "denoiser": dj.exact_denoiser(known, process),
        "weaker": dj.exact_denoiser(near([0.0, 0.0]), process),
        "labelled": dj.make_denoiser(params, labels, **parts),
        "null": 5,
        "log_prob": lambda xt, t: jax.nn.log_sigmoid(xt[:, 0]),
        "pixels": jnp.asarray([[255, 255], [0, 0], [255, 0], [0, 255]]),
        "xT": dj.prior(jax.random.key(1), process, (4, 2)),
        "ts": dj.logsnr_grid(process, 20),
        "mask": jnp.asarray([1, 0]),
        "y": x0 * jnp.asarray([1, 0]),
        "features": np.random.default_rng(0).normal(size=(20, 2)),
        "real_features": np.random.default_rng(1).normal(size=(20, 2)),
        "known": known,
    }


@pytest.mark.slow
def test_the_recipes_of_likelihood(names):
    space = dict(names)
    exec(block("likelihood", "python"), space)
    truth = names["known"].log_prob(names["process"], names["x0"], dj.interval(names["process"])[0])
    np.testing.assert_allclose(space["again"], names["x0"], atol=1e-2)
    assert space["bits"][:2].max() < space["bits"][2:].min()  # corners with data, and without
    np.testing.assert_allclose(space["nats"], truth, atol=0.5)
    assert np.all(np.isfinite([*space["between"], *space["latent"]]))


@pytest.mark.slow
def test_the_recipes_of_guidance(names):
    space = dict(names)
    exec(block("guidance", "python"), space)
    for name in ("guided", "rescaled", "apg", "limited", "auto", "pulled", "clipped", "both", "but_not"):
        x0 = space[name](names["xT"], jnp.asarray(0.5))
        assert x0.shape == (4, 2)
        assert np.all(np.isfinite(x0))
    assert np.all(np.isfinite(space["samples"]))


@pytest.mark.slow
def test_the_recipes_of_inverse_problems(names):
    """The coordinate that is seen comes back."""
    code = block("inverse", "python")
    space, found = dict(names), []
    for line in code.splitlines():
        exec(line, space)
        if line.startswith("samples"):
            found.append(np.asarray(space["samples"]))
    assert len(found) == 4
    for samples in found[:3]:
        np.testing.assert_allclose(samples[:, 0], names["x0"][:, 0], atol=0.5)
    assert np.all(np.isfinite(found[3]))
    np.testing.assert_allclose(space["particles"].x0[:, 0], 1, atol=0.5)


def test_the_recipes_of_metrics(names):
    space = dict(names)
    exec(block("metrics", "python"), space)
    assert all(space[name] > 0 for name in ("precision", "recall", "density", "coverage"))


@pytest.mark.slow
def test_the_recipe_of_other_peoples_weights(tmp_path):
    """A folder as diffusers writes it, with the parameters of a tiny network; its samples are pictures."""
    config = {
        "_class_name": "UNet2DModel",
        "sample_size": 8,
        "block_out_channels": [8],
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "attention_head_dim": 4,
    }
    scheduler = {"_class_name": "DDIMScheduler", "num_train_timesteps": 100, "clip_sample": True}
    module = interop.module_from_config(config)
    x = jnp.zeros((1, 8, 8, 3))
    params = dj.from_linen(module).init(jax.random.key(0), x, jnp.zeros(1))
    interop.save_pretrained(tmp_path, params, config, scheduler=scheduler)
    space = {"dj": dj, "interop": interop, "key": jax.random.key(1), "folder": tmp_path}
    exec(block("interop", "python"), space)
    for name in ("images", "ours"):
        assert space[name].shape == (4, 8, 8, 3)
        assert np.all(np.abs(space[name]) <= 1 + 1e-5)
