"""What the README shows runs as it stands there."""

import ast
import re
import shlex
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from nets import perturbed

import diffjax as dj
from diffjax import gan, guidance, interop, inverse, likelihood, metrics, networks, operators, training
from diffjax.cli import main
from diffjax.config import check_config

README = (Path(__file__).parent.parent / "README.md").read_text()


def block(name, language):
    """The fenced block right after the line `<!-- run: name -->`."""
    found = re.search(rf"<!-- run: {name} -->\n```{language}\n(.*?)```", README, re.DOTALL)
    assert found, f"README has no {language} block after <!-- run: {name} -->"
    return found.group(1)


@pytest.mark.parametrize("name", ["main", "test"])
def test_the_commands_set_themselves_up(name):
    assert block(name, "bash").startswith("python3 -m venv .venv\n.venv/bin/pip install")


def test_what_needs_an_extra_says_so():
    """All extras stand in the README; a command, a script or a benchmark that needs one names it where it stands."""
    root = Path(__file__).parent.parent
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [name for name in extras if f"`{name}`" not in README and f'".[{name}]"' not in README] == []
    needs = {  # what a line of the README, or the code of a script, has in it; what is said beside it
        "--tensorboard": "extra log",
        "--data.workers": "extra data",
        "on the Hub": "extra interop",
        "convert_edm.py": "torch",
        "langevin.py": "extra mcmc",
    }
    for line in (part for part in README.replace("`", "").split("\n\n") if "extra, all of them" not in part):
        for what, extra in needs.items():
            assert what not in line or extra in line, line
    code = {
        r"samplers\.(mala|hmc)\b": "mcmc",
        r"prefetch\(.*workers=|ArrayRecords|write_records": "data",
        r"OptimalTransport\(": "metrics",
        r"nbclient|jupytext": "dev",
        r"^ *(import torch|import diffusers|from diffusers)\b": "(parity|torch)",
    }
    seen = 0
    for path in sorted(p for folder in ("scripts", "benchmarks", "notebooks") for p in (root / folder).rglob("*.py")):
        text = path.read_text()
        head = ast.get_docstring(ast.parse(text)) or ""
        body = text.replace(head, "")
        for what, extra in code.items():
            if re.search(what, body, re.MULTILINE) and not re.match("# ---", text):  # a paired notebook's own header
                seen += 1
                assert re.search(rf"extra\s+`{extra}`|pip install {extra}", head), f"{path}: {what} needs {extra}"
    assert seen >= 7


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
    params = perturbed(network.init(key, jnp.zeros((4, 2)), jnp.zeros(4), labels))  # whose labels make a difference
    diffusion = dj.Diffusion(network, process, dj.VPrediction())
    x0 = jnp.asarray([[1.0, 1.0], [-1.0, -1.0], [1.1, 0.9], [-0.9, -1.1]])
    return {
        **{"dj": dj, "guidance": guidance, "inverse": inverse, "likelihood": likelihood, "metrics": metrics},
        **{"operators": operators, "key": key, "process": process, "x0": x0, "std": 0.1},
        "denoiser": dj.exact_denoiser(known, process),
        "weaker": dj.exact_denoiser(near([0.0, 0.0]), process),
        "labelled": dj.make_denoiser(diffusion, params, labels),
        "unlabelled": dj.make_denoiser(diffusion, params, jnp.full(4, 5)),
        "null": 5,
        "log_prob": lambda xt, t: jax.nn.log_sigmoid(xt[:, 0]),
        "pixels": jnp.asarray([[255, 255], [0, 0], [255, 0], [0, 255]]),
        "xT": dj.prior(jax.random.key(1), process, (4, 2)),
        "ts": dj.logsnr_grid(process, 20),
        "mask": jnp.asarray([1, 0]),
        "y": x0 * jnp.asarray([1, 0]),
        "features": np.random.default_rng(0).normal(size=(20, 2)) * [1.2, 0.8] + [2, 0],
        "real_features": np.random.default_rng(1).normal(size=(20, 2)),
        "known": known,
    }


@pytest.mark.slow
def test_the_recipes_of_likelihood(names):
    space, nats, latents = dict(names), [], []
    for line in block("likelihood", "python").splitlines():
        exec(line, space)
        for name, found in (("nats", nats), ("latent", latents)):
            if line.startswith(name):
                found.append(np.asarray(space[name]))
    process, known, x0 = (names[name] for name in ("process", "known", "x0"))
    truth = np.asarray(known.log_prob(process, x0, process.time_from_logsnr(14.0)))
    np.testing.assert_allclose(nats[0], truth, atol=2e-2)
    np.testing.assert_allclose(nats[1], truth, atol=0.5)  # with the noise of four probes
    error = likelihood.evaluate_continuous_elbo(names["key"], process, names["denoiser"], x0, draws=50).standard_error
    assert np.all(np.abs(space["bound"] - truth) < 4.5 * error)  # the exact denoiser's bound is tight
    np.testing.assert_allclose(space["again"], x0, atol=1e-2)
    # Levels are 2/255 apart, so that a pixel's probability is nearly (2/255)^2 of the density.
    corner = -(np.log(0.5 / (2 * np.pi * 0.04)) + 2 * np.log(2 / 255)) / (2 * np.log(2))
    np.testing.assert_allclose(space["bits"][:2], corner, atol=0.02)
    assert space["bits"][2:].min() > corner + 20, "corners without data"
    # Halfway between two latents, from either of them; and data that the model knows.
    np.testing.assert_allclose(space["between"], space["between"][::-1], atol=1e-2)
    assert np.all(known.log_prob(process, space["between"], process.interval()[0]) > truth.max() - 12)
    back = dj.sample(names["key"], process, names["denoiser"], jnp.asarray(latents[-1]), names["ts"], dj.DDIM())
    np.testing.assert_allclose(back, x0, atol=0.15)
    assert np.abs(latents[-1] - latents[0]).max() < 0.5, "twenty steps of the flow end near the flow's own latent"


def test_the_commands_of_few_steps_are_read(monkeypatch):
    """Each option and name is one of its command; the runs themselves are those of test_distill.py."""
    read = []
    for command in ("train", "distill", "sample", "evaluate"):
        monkeypatch.setattr(f"diffjax.cli.run_{command}", lambda options, argv: read.append(options))
    lines = [shlex.split(line, comments=True) for line in block("few-steps-commands", "bash").splitlines()]
    assert [main(words[1:]) for words in lines] == [0] * len(lines)
    distilled, _, drawn, trained, measured = read
    assert (distilled.run, distilled.steps, distilled.out, drawn.run) == (
        "runs/digits",
        1,
        "runs/one-step",
        distilled.out,
    )
    assert (trained.config.loss.name, trained.out, measured.run) == ("mean_flow", measured.run, "runs/mean-flow")
    assert measured.sampler.steps == (1, 2, 4)


def test_the_commands_of_texts_are_read(monkeypatch):
    """Each option and name is one of its command; the runs themselves are those of test_conditions.py."""
    read = []
    for command in ("train", "encode_text", "sample"):
        monkeypatch.setattr(f"diffjax.cli.run_{command}", lambda options, argv: read.append(options))
    lines = [shlex.split(line, comments=True) for line in block("text-commands", "bash").splitlines()]
    assert [main(words[1:]) for words in lines] == [0] * len(lines)
    scenes, trained, drawn, mine, other = read
    assert (trained.config.data.name, trained.config.data.text) == (scenes.captions, scenes.out)
    assert (drawn.run, drawn.text) == ("runs/shapes", ("a red circle above a small blue square",))
    assert drawn.guidance.scale == 3
    assert (other.config.data.path, other.config.data.text) == (mine.captions, mine.out)
    check_config(other.config)


def test_the_recipe_of_few_steps(names):
    """From noise to the data's standard deviation, which is 1/2, in one evaluation; and from fresh noise in two."""
    space = dict(names)
    exec(block("few-steps", "python"), space)
    process, xT = names["process"], names["xT"]
    np.testing.assert_allclose(
        space["once"], 0.5 * xT / np.hypot(process.sigma(1.0), 0.5 * process.alpha(1.0)), rtol=1e-4
    )
    assert np.all(np.abs(space["twice"]) < 0.5 * 4.5)
    assert np.abs(space["twice"] - space["once"]).max() > 0.1


def test_the_recipe_of_gans(names):
    """One step of both objectives, whose losses at the start are near log 2, and samples of both kinds of GAN."""
    space = {**names, "jax": jax, "jnp": jnp, "nn": linen, "gan": gan, "networks": networks, "training": training}
    code = block("gan", "python")
    exec(code.split("\n\ngenerator = ")[0], space)
    assert space["state"].step == 1
    assert 0.3 < space["numbers"]["discriminator/loss"] < 1.5
    assert space["numbers"]["discriminator/penalty"] > 0
    assert np.isfinite(space["samples"]).all()
    assert space["samples"].shape == (100, 2)
    exec("generator = " + code.split("\n\ngenerator = ")[1], space)
    assert space["samples"].shape == (4, 2)
    assert np.isfinite(space["samples"]).all()


def guided_by_hand(xt, alpha, sigma, logsnr, answers):
    """What each recipe of guidance does to the denoisers' answers, from the papers' formulas."""
    c, u, d, w = (np.asarray(answers[name], float) for name in ("labelled", "unlabelled", "denoiser", "weaker"))
    guided, strong = u + 2 * (c - u), u + 4 * (c - u)
    sizes = np.std(c, 1, keepdims=True), np.std(strong, 1, keepdims=True)
    along = np.sum((c - u) * c, 1, keepdims=True) / np.sum(c**2, 1, keepdims=True) * c
    slope = np.stack([1 / (1 + np.exp(xt[:, 0])), np.zeros(len(xt))], axis=1)  # of log sigmoid(x_1)
    s = np.maximum(np.quantile(np.abs(guided), 0.995, axis=1, keepdims=True), 1)
    return {
        "guided": guided,
        "rescaled": strong * (1 - 0.7 + 0.7 * sizes[0] / sizes[1]),
        "apg": c + 3 * (c - u - along),
        "limited": np.where((logsnr > -2) & (logsnr < 6), guided, c),
        "auto": w + 2 * (c - w),
        "pulled": d + sigma**2 / alpha * slope,
        "clipped": np.clip(guided, -s, s) / s,
        "both": d + w - xt / alpha,
        "but_not": d - 0.5 * w + 0.5 * xt / alpha,
    }


def test_the_recipes_of_guidance(names):
    """Each a function of its denoisers' answers, on both sides of the interval, in and out of the data's range."""
    *lines, sampling = block("guidance", "python").splitlines()
    assert sampling.startswith("samples")
    space = dict(names)
    exec("\n".join(lines), space)
    xt, t, process = 1.5 * names["xT"], jnp.array([0.5, 0.3, 0.05, 0.003]), names["process"]
    both = [line.split(" = ")[0] for line in lines], ("labelled", "unlabelled", "denoiser", "weaker")
    found, answers = jax.jit(lambda: [{name: space[name](xt, t) for name in some} for some in both])()
    values = (xt, process.alpha(t), process.sigma(t), process.logsnr(t))
    xt, alpha, sigma, logsnr = (np.reshape(np.asarray(value, float), (4, -1)) for value in values)
    truth = guided_by_hand(xt, alpha, sigma, logsnr, answers)
    assert found.keys() == truth.keys()
    for name, x0 in found.items():
        np.testing.assert_allclose(x0, truth[name], rtol=1e-4, atol=1e-4, err_msg=name)
    apart = {name: np.abs(truth[name] - truth["guided"]).max() for name in ("rescaled", "apg", "limited", "clipped")}
    assert min(apart.values()) > 0.05, "so that each can be told from the plain one"


@pytest.mark.slow
def test_the_recipe_of_guided_samples(names):
    space = dict(names)
    exec(block("guidance", "python"), space)
    assert space["samples"].shape == (4, 2)
    assert np.abs(space["samples"]).max() <= 1 + 1e-6  # what the threshold leaves
    np.testing.assert_allclose(space["samples"], space["clipped"](space["samples"], names["ts"][-1]), atol=0.05)


@pytest.mark.slow
def test_the_recipes_of_inverse_problems(names):
    """The coordinate that is seen comes back, and the hidden one is that of the mode that it tells of."""
    code = block("inverse", "python")
    space, found = dict(names), []
    for line in code.splitlines():
        exec(line, space)
        if line.startswith("samples"):
            found.append(np.asarray(space["samples"]))
    assert len(found) == 4
    for samples in found[:3]:
        np.testing.assert_allclose(samples[:, 0], names["x0"][:, 0], atol=0.5)
        np.testing.assert_allclose(samples[:, 1], names["x0"][:, 1], atol=0.8)  # four deviations
    np.testing.assert_allclose(found[3], names["x0"], atol=0.5)  # near a picture
    np.testing.assert_allclose(space["particles"].x0[:, 0], 1, atol=0.5)
    np.testing.assert_allclose(space["particles"].x0[:, 1], 1, atol=1)


def test_the_recipes_of_metrics(names):
    """Balls about each set's points, up to the k-th other one of their own: by all distances at once."""
    space = dict(names)
    exec(block("metrics", "python"), space)
    x, real = names["features"], names["real_features"]
    far = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=-1)
    ball = lambda a, k: np.sort(far(a, a), axis=1)[:, k]
    truth = {
        "precision": np.mean(np.any(far(x, real) <= ball(real, 3), axis=1)),
        "recall": np.mean(np.any(far(real, x) <= ball(x, 3), axis=1)),
        "density": np.sum(far(x, real) <= ball(real, 5)) / (5 * len(x)),
        "coverage": np.mean(np.any(far(real, x) <= ball(real, 5)[:, None], axis=1)),
    }
    assert len(set(truth.values())) == 4
    for name, value in truth.items():
        np.testing.assert_allclose(space[name], value, rtol=1e-6, err_msg=name)


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
