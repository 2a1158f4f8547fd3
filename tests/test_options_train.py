"""Every field of a configuration against the library call that it stands for.

Presets and defaults are written out, the command line sets each field, and a short run with none of them at its default
is the run that the same numbers give by hand. The last test names the check of every field.
"""

import dataclasses
import io
import json
import re
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets import perturbed
from PIL import Image

from diffjax import config as c, losses, networks, parameterisation, process as processes, samplers
from diffjax.cli import main
from diffjax.cli._averages import names
from diffjax.cli._draw import Draw
from diffjax.data import ImageFolder, checkerboard, digits, mixture, prefetch, swiss_roll, two_moons
from diffjax.guidance import classifier_free
from diffjax.training import Checkpoints, data_mesh, init_state, make_train_step

# --- defaults and presets ---

DEFAULTS = {
    "name": "digits",
    "steps": 3000,
    "batch_size": 128,
    "seed": 0,
    "ema_decay": 0.999,
    "ema_widths": (),
    "data": {
        "name": "digits",
        "path": None,
        "conditional": True,
        "image_size": None,
        "flip": False,
        "workers": 0,
        "holdout": 0.2,
        "holdout_seed": 0,
        "channels": None,
        "skip_bad": False,
    },
    "process": {
        "name": "cosine",
        "beta_min": None,
        "beta_max": None,
        "shift": None,
        "offset": None,
        "horizon": None,
        "power": None,
        "sigma_min": None,
        "sigma_max": None,
        "rho": None,
    },
    "parameterisation": {"name": "v", "data_std": None},
    "weighting": {"name": "native", "data_std": None, "gamma": None, "bias": None, "k": None},
    "times": {"name": "stratified", "mean": None, "std": None, "scale": None},
    "network": {
        "name": "unet",
        "channels": 32,
        "multipliers": (1, 2),
        "blocks": 1,
        "attention": (1,),
        "head_channels": 32,
        "width": 128,
        "depth": 3,
        "heads": 4,
        "patch": 2,
        "scan": False,
        "dropout": 0.0,
        "dtype": "float32",
        "remat": False,
    },
    "optimiser": {"learning_rate": 1e-3, "warmup": 200, "final": 0.0, "clip": 1.0, "weight_decay": 0.0},
    "guidance": {"dropout": 0.1, "scale": 1.5},
    "sampler": {"name": "dpmpp2m", "steps": 20, "grid": "logsnr", "eta": None},
}
PRESETS = {
    "digits": {
        "steps": 1200,
        "batch_size": 64,
        "optimiser.learning_rate": 2e-3,
        "optimiser.warmup": 100,
        "guidance.scale": 1.1,
    },
    "mnist": {
        "name": "mnist",
        "steps": 4000,
        "batch_size": 64,
        "data.name": "mnist",
        "network.channels": 16,
        "network.multipliers": (1, 2, 4),
        "network.attention": (2,),
        "guidance.scale": 1.1,
    },
    "cifar10": {
        "name": "cifar10",
        "steps": 200_000,
        "ema_decay": 0.9999,
        "data.name": "cifar10",
        "data.flip": True,
        "network.channels": 128,
        "network.multipliers": (1, 2, 2, 2),
        "network.blocks": 2,
        "network.head_channels": 64,
        "network.dropout": 0.1,
        "optimiser.learning_rate": 2e-4,
        "optimiser.warmup": 5000,
        "guidance.scale": 1.1,
        "sampler.steps": 25,
    },
    "toy2d": {
        "name": "toy2d",
        "batch_size": 512,
        "data.name": "mixture",
        "data.conditional": False,
        "network.name": "mlp",
        "optimiser.learning_rate": 2e-3,
        "guidance.dropout": 0.0,
        "guidance.scale": 1.0,
    },
}


def test_defaults_and_presets_have_the_documented_values():
    assert dataclasses.asdict(c.Config()) == DEFAULTS
    assert list(c.PRESETS) == list(PRESETS)
    for name, preset in c.PRESETS.items():
        assert {path: value for path, _, value in c.differences(c.Config(), preset)} == PRESETS[name]


# --- the command line ---

ODD = c.Config(
    "other",
    7,
    24,
    5,
    0.5,
    (0.05, 0.1),
    c.DataConfig("two_moons", "a.npz", False, 9, True, 3, 0.3, 4, 1, True),
    c.ProcessConfig("karras", 0.3, 9.0, -1.5, 0.2, 3.0, 3.5, 0.05, 20.0, 4.0),
    c.ParameterisationConfig("eps", 1.5),
    c.WeightingConfig("p2", 0.75, 0.25, -2.0, 2.5),
    c.TimesConfig("mode", 0.7, 0.4, -0.6),
    c.NetworkConfig("dit", 16, (1, 3, 5), 2, (0, 2), 8, 24, 5, 3, 4, True, 0.35, "bfloat16", True),
    c.OptimiserConfig(0.05, 3, 0.15, 0.45, 0.55),
    c.GuidanceConfig(0.65, 2.5),
    c.SamplerConfig("ddim", 11, "snr", 0.85),
)
"""A number of its own for every field."""


def leaves(config, path=""):
    """{path: value} of all fields."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = dataclasses.is_dataclass(value)
        found |= leaves(value, f"{path}{field.name}.") if inner else {path + field.name: value}
    return found


def words(config, start):
    """A configuration as options of `diffjax train`, those where it differs from another."""
    found = []
    for path, _, value in c.differences(start, config):
        group, _, last = path.replace("_", "-").rpartition(".")
        option = f"--{group}.no-{last}" if value is False and group else f"--{path.replace('_', '-')}"
        values = [] if isinstance(value, bool) else value if isinstance(value, tuple) else [value]
        found += [option, *map(str, values)]
    return found


def test_each_option_of_train_sets_its_field(monkeypatch):
    parsed = []
    monkeypatch.setattr("diffjax.cli.run_train", lambda options, argv: parsed.append(options.config))
    preset = c.PRESETS["digits"]
    assert all(value != leaves(ODD)[path] for path, value in leaves(preset).items())
    assert main(["train", "digits", *words(ODD, preset)]) == 0
    assert main(["train", "digits"]) == 0
    assert parsed == [ODD, preset]


# --- a run ---


def test_a_run_equals_the_same_run_by_library_calls(tmp_path, monkeypatch):
    """Four updates through the command line, and the same by hand: parameters, averages and losses of every step."""
    monkeypatch.chdir(tmp_path)
    read = []

    def fetching(*args, workers, **options):
        read.append(workers)
        return prefetch(*args, **options)

    monkeypatch.setattr("diffjax.cli._train.prefetch", fetching)
    monkeypatch.setattr("diffjax.cli._train._finish", lambda *args: None)  # no samples
    config = c.Config(
        name="other",
        steps=4,
        batch_size=12,
        seed=5,
        ema_decay=0.3,
        ema_widths=(0.1,),
        data=c.DataConfig("mixture", workers=2),
        process=c.ProcessConfig("variance_preserving", beta_max=10.0),
        parameterisation=c.ParameterisationConfig("eps", data_std=0.8),
        weighting=c.WeightingConfig("min_snr", gamma=2.0),
        times=c.TimesConfig("lognormal", mean=-0.5),
        network=c.NetworkConfig("mlp", width=8, depth=2, dropout=0.3),
        optimiser=c.OptimiserConfig(learning_rate=0.1, warmup=0, final=0.3, clip=0.5, weight_decay=0.2),
        guidance=c.GuidanceConfig(dropout=0.4),
        sampler=c.SamplerConfig(steps=2),
    )
    options = ["--layout", "jit", "--devices", "1", "--log-every", "1"]
    assert main(["train", "toy2d", *words(config, c.PRESETS["toy2d"]), *options]) == 0
    out = Path("runs/other")
    assert c.from_json((out / "config.json").read_text()) == config
    assert read == [2]

    network = networks.from_linen(networks.MLP(width=8, depth=2, dropout=0.3, num_classes=8))
    process = processes.VariancePreserving(0.1, 10.0)

    def loss(params, key, batch, index, total):
        x0, labels = batch
        hide, draw = jax.random.split(key)
        return losses.denoising_loss(
            params,
            draw,
            x0,
            losses.drop_condition(hide, labels, 8, 0.4, index=index),
            network=network,
            process=process,
            parameterisation=parameterisation.EpsPrediction(0.8),
            time_sampler=processes.LognormalTimes(process, -0.5, 1.2),
            weighting=losses.MinSNR(2.0),
            index=index,
            total=total,
        )

    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, 0, 4, 0.03)
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(schedule, weight_decay=0.2))
    source = mixture(components=8, std=0.1)
    fresh = init_state(jax.random.key(5), network, tx, jnp.zeros((1, 2)), jnp.zeros(1, jnp.int32))
    step = jax.jit(make_train_step(loss, tx, ema=lambda step, params, ema: ema))
    mix = lambda keep, old, new: jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, old, new)
    state, decayed, powered, logged = fresh, fresh.params, fresh.params, []
    for n in range(4):
        state, metrics = step(state, jax.tree.map(jnp.asarray, source(5, n, 12)))
        logged.append(float(metrics["loss"]))
        decayed = mix(min(0.3, (1 + n) / (10 + n)), decayed, state.params)  # three steps of warm-up
        powered = mix((1 - 1 / (n + 1)) ** (6.9372 + 1), powered, state.params)  # of a profile of width 0.1
    with Checkpoints(out / "checkpoints", read_only=True) as checkpoints:
        tx = c.build(config, 8).tx
        cond = jnp.zeros(1, jnp.int32)
        like = init_state(jax.random.key(0), network, tx, jnp.zeros((1, 2)), cond, averages=names(config))
        found = checkpoints.restore(like)
    assert found.step == 4
    close = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-5), a, b)
    close(found.params, state.params)
    close(found.ema["decay"], decayed)
    close(found.ema[names(config)[1]], powered)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([line["loss"] for line in lines], logged, rtol=1e-4)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), state.params, decayed)
    assert max(jax.tree.leaves(moved)) > 0.005  # the average is not the parameters themselves


def test_samples_use_the_configured_sampler_grid_and_guidance_scale():
    config = c.Config(
        data=c.DataConfig("mixture"),
        process=c.ProcessConfig("rectified"),
        network=c.NetworkConfig("mlp", width=8, depth=1),
        guidance=c.GuidanceConfig(scale=2.5),
        sampler=c.SamplerConfig("ddim", steps=3, grid="quadratic", eta=0.7),
    )
    data = c.build_data(config.data)
    parts = c.build(config, data.classes)
    labels, mesh = jnp.arange(6) % 8, data_mesh(jax.devices()[:1])
    params = perturbed(parts.network.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1), labels[:1]), size=0.5)
    drawn = Draw(config, data, parts, params, mesh=mesh)(6, labels, 3)
    network = networks.from_linen(networks.MLP(width=8, depth=1, num_classes=8))
    process = processes.Rectified()
    denoiser = parameterisation.make_denoiser(
        params, labels, network=network, process=process, parameterisation=parameterisation.VPrediction()
    )
    by_hand = lambda scale: samplers.sample_n(
        jax.random.key(3),
        process,
        classifier_free(denoiser, 8, scale),
        (2,),
        6,
        ts=processes.quadratic_grid(process, 3),
        stepper=samplers.DDIM(eta=0.7),
        mesh=mesh,
    )
    np.testing.assert_allclose(drawn, by_hand(2.5), rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(drawn - by_hand(1.5))) > 0.01


def test_labels_are_dropped_with_the_configured_probability():
    """Each sample's loss is the one with its label or the one without any: the share without is `guidance.dropout`."""
    config = c.Config(data=c.DataConfig("mixture"), network=c.NetworkConfig("mlp", width=8, depth=1))
    n = 512
    x0, labels = jax.tree.map(jnp.asarray, c.build_data(config.data).source(0, 0, n))
    built = lambda share, classes=8: c.build(
        dataclasses.replace(config, guidance=c.GuidanceConfig(dropout=share)), classes
    )
    params = built(0.0).network.init(jax.random.key(0), x0[:1], jnp.zeros(1), labels[:1])
    params = perturbed(params, size=0.5)  # a fresh network is 0 whatever the label

    def each(share):
        parts = built(share)
        assert parts.null == 8
        loss = lambda cond: parts.loss(params, jax.random.key(1), (x0, cond), jnp.arange(n), n)
        return jax.jit(lambda cond: loss(cond)[1]["per_sample"])

    labelled, unlabelled = map(each(0.0), (labels, jnp.full(n, 8, jnp.int32)))
    clear = np.abs(labelled - unlabelled) > 1e-3 * unlabelled
    assert clear.mean() > 0.9
    for share in (0.3, 1.0):
        found = each(share)(labels)
        dropped = np.isclose(found, unlabelled, rtol=1e-4)
        np.testing.assert_allclose(found[~dropped], labelled[~dropped], rtol=1e-4)
        assert abs(dropped[clear].mean() - share) < 5 * np.sqrt(share * (1 - share) / clear.sum()) + 1e-9
    parts = built(0.3, None)  # unconditional: there is no label to drop
    params = jax.eval_shape(parts.network.init, jax.random.key(0), x0[:1], jnp.zeros(1))
    jax.eval_shape(lambda params: parts.loss(params, jax.random.key(1), (x0, None), jnp.arange(n), n), params)


# --- the optimiser ---


def by_adam(params, gradients, config, steps):
    """Parameters [steps, 5] after each update of Adam with everything around it, in NumPy."""
    warm, m, v, after = min(config.warmup, steps // 2), 0.0, 0.0, []
    for n, gradient in enumerate(gradients):
        gradient = gradient * min(1.0, config.clip / np.linalg.norm(gradient))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        move = (m / (1 - 0.9 ** (n + 1))) / (np.sqrt(v / (1 - 0.999 ** (n + 1))) + 1e-8)
        cosine = 0.5 * (1 + np.cos(np.pi * (n - warm) / (steps - warm)))
        rate = n / warm if n < warm else config.final + (1 - config.final) * cosine
        params = params - config.learning_rate * rate * (move + config.weight_decay * params)
        after.append(params)
    return np.array(after)


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (c.OptimiserConfig(), 8),  # the warm-up is half the run at most
        (ODD.optimiser, 9),
        (c.OptimiserConfig(learning_rate=0.05, warmup=0, clip=3.0), 4),
        (c.OptimiserConfig(), 1),
    ],
)
def test_the_optimiser_is_adam_with_clipping_warm_up_decay_and_cosine(config, steps):
    rng = np.random.default_rng(0)
    start = rng.normal(size=5)
    gradients = rng.normal(size=(steps, 5)) * rng.uniform(0.05, 5, (steps, 1))  # norms below and above the clip
    tree = lambda flat: {"a": jnp.asarray(flat[:2], jnp.float32), "b": jnp.asarray(flat[2:], jnp.float32)}
    tx, params, found = c.build_optimiser(config, steps), tree(start), []
    state, update = tx.init(params), jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update(tree(gradient), state, params)
        params = optax.apply_updates(params, updates)
        found.append(np.concatenate([params["a"], params["b"]]))
    np.testing.assert_allclose(
        np.array(found) - start, by_adam(start, gradients, config, steps) - start, rtol=1e-4, atol=1e-6
    )


# --- the data ---

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 32, 32, 3), np.uint8)
LABELS = np.arange(12) % 3


def pairs(data):
    """{image: label} of what is trained on and of what is held out."""
    return [
        dict(zip([image.tobytes() for image in x], y.tolist(), strict=True)) for x, y in (data.train, data.held_out)
    ]


def items(images, chosen):
    """The same of some images as they were written."""
    x = (images[chosen] / np.float32(127.5) - 1).astype(np.float32)
    return dict(zip([image.tobytes() for image in x], LABELS[chosen].tolist(), strict=True))


def _idx(array):
    return struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(folder, **parts):
    folder.mkdir()
    for name, chosen in parts.items():
        (folder / f"{name}-images-idx3-ubyte").write_bytes(_idx(IMAGES[chosen, ..., 0]))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(_idx(LABELS[chosen]))
    return folder


def write_cifar(folder):
    folder.mkdir()
    records = [bytes([y]) + x.transpose(2, 0, 1).tobytes() for x, y in zip(IMAGES, LABELS, strict=True)]
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        (folder / f"{name}.bin").write_bytes(records[2 * i] + records[2 * i + 1])
    return folder


def write_folders(folder, shape=slice(None)):
    for i, label in enumerate(LABELS):
        path = folder / "abc"[label] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        Image.fromarray(IMAGES[i, shape]).save(file, "PNG")
        path.write_bytes(file.getvalue())
    return folder


def test_files_are_read_as_their_name_says(tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES, y=LABELS)
    grey = IMAGES[..., :1]
    read = lambda name, path, **options: c.build_data(c.DataConfig(name, str(path), **options))
    whole, first, last = np.arange(12), np.arange(10), np.arange(10, 12)
    for data in (read("file", tmp_path / "a.npz"), read("image_folder", write_folders(tmp_path / "folders"))):
        train, held_out = pairs(data)
        assert train | held_out == items(IMAGES, whole)
        assert (len(train), len(held_out), data.classes) == (10, 2, 3)  # a fifth is 2.4
    assert pairs(read("cifar10", write_cifar(tmp_path / "cifar"))) == [items(IMAGES, first), items(IMAGES, last)]
    both = write_mnist(tmp_path / "both", train=first, t10k=last)
    assert pairs(read("mnist", both)) == [items(grey, first), items(grey, last)]
    train, held_out = pairs(read("mnist", write_mnist(tmp_path / "alone", t10k=whole), holdout=0.5))
    assert (train | held_out, len(held_out)) == (items(grey, whole), 6)


def test_images_are_scaled_to_the_size_of_the_configuration(tmp_path):
    path = write_folders(tmp_path / "a", slice(0, 20))
    data = c.build_data(c.DataConfig("image_folder", str(path), image_size=8))
    assert data.shape == (8, 8, 3)
    by_hand = np.array([ImageFolder(path, size=8)[i][0] for i in range(12)]) / np.float32(127.5) - 1
    assert {image.tobytes() for image in by_hand} == set().union(*pairs(data))
    assert c.build_data(c.DataConfig("image_folder", str(path))).shape == (20, 32, 3)


def test_images_have_the_channels_of_the_configuration(tmp_path):
    path = write_folders(tmp_path / "a")
    grey = [np.asarray(Image.fromarray(image).convert("L"))[..., None] for image in IMAGES]
    for channels, images in ((None, IMAGES), (3, IMAGES), (1, np.array(grey))):
        train, held_out = pairs(c.build_data(c.DataConfig("image_folder", str(path), channels=channels)))
        assert train | held_out == items(images, np.arange(12))


def test_a_share_is_held_out_by_its_seed(tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES, y=LABELS)
    found = {}
    for share, seed in ((0.25, 0), (0.25, 1), (0.5, 0), (0.25, 0)):
        config = c.DataConfig("file", str(tmp_path / "a.npz"), holdout=share, holdout_seed=seed)
        train, held_out = pairs(c.build_data(config))
        assert train | held_out == items(IMAGES, np.arange(12))
        assert len(held_out) == 12 * share == 12 - len(train)
        assert found.setdefault((share, seed), held_out) == held_out
    assert found[0.25, 0] != found[0.25, 1]
    data = c.build_data(c.DataConfig("digits", holdout=0.4, holdout_seed=3))
    for part, split in ((data.train, "train"), (data.held_out, "test")):
        jax.tree.map(np.testing.assert_array_equal, part, digits(split, holdout=0.4, seed=3))


def test_digits_are_split_and_flipped_as_configured():
    data, flipped = (c.build_data(c.DataConfig("digits", flip=flip)) for flip in (False, True))
    assert (data.shape, data.classes, data.log_prob) == ((8, 8, 1), 10, None)
    for part, split in (("train", "train"), ("held_out", "test")):
        for of in (data, flipped):
            jax.tree.map(np.testing.assert_array_equal, getattr(of, part), digits(split, holdout=0.2, seed=0))
    assert len(data.train[0]) + len(data.held_out[0]) == 1797
    (x, y), (mirrored, z) = data.source(1, 2, 64), flipped.source(1, 2, 64)
    np.testing.assert_array_equal(y, z)
    turned = np.any(x != mirrored, axis=(1, 2, 3))
    np.testing.assert_array_equal(mirrored, np.where(turned[:, None, None, None], x[:, :, ::-1], x))
    assert 10 < turned.sum() < 54
    known = {image.tobytes() for image in data.train[0]}
    assert {image.tobytes() for image in x} <= known
    assert np.any(data.source(2, 2, 64)[0] != x)  # another seed, another order


TOYS = {
    "mixture": (lambda: mixture(components=8, std=0.1), 8),
    "two_moons": (lambda: two_moons(noise=0.05), 2),
    "checkerboard": (lambda: checkerboard(cells=4), None),
    "swiss_roll": (lambda: swiss_roll(noise=0.3), None),
}


def test_a_toy_is_its_density_and_is_measured_on_draws_of_other_seeds():
    assert list(TOYS) == list(c.TOYS)
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    for name, (make, classes) in TOYS.items():
        toy, data = make(), c.build_data(c.DataConfig(name))
        assert (data.shape, data.classes) == ((2,), classes)
        same(data.source(3, 5, 64), toy(3, 5, 64))
        # The seeds of what is measured against are beyond those of runs, 0 .. 2^32 - 1.
        same(data.train, toy(2**32, 0, 4000))
        same(data.held_out, toy(2**32 + 1, 0, 4000))
        points = [{point.tobytes() for point in part[0]} for part in (data.train, data.held_out, toy(0, 0, 4000))]
        assert len(set.union(*points)) == 12_000
        assert (data.log_prob is None) == (name in ("two_moons", "swiss_roll"))
        if data.log_prob is not None:
            same(data.log_prob(data.train[0]), toy.log_prob(data.train[0]))
        plain = c.build_data(c.DataConfig(name, conditional=False))
        assert (plain.classes, plain.source(3, 5, 64)[1], plain.train[1], plain.held_out[1]) == (None,) * 4
        same(plain.source(3, 5, 64)[0], toy(3, 5, 64)[0])


def test_an_unconditional_network_gets_no_labels(tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES, y=LABELS)
    for config in (c.DataConfig("digits"), c.DataConfig("file", str(tmp_path / "a.npz"))):
        data, plain = (
            c.build_data(dataclasses.replace(config, conditional=conditional)) for conditional in (True, False)
        )
        assert (plain.classes, plain.source(0, 0, 4)[1], plain.train[1], plain.held_out[1]) == (None,) * 4
        np.testing.assert_array_equal(plain.source(0, 0, 4)[0], data.source(0, 0, 4)[0])
        assert data.classes == 1 + max(data.train[1].max(), data.held_out[1].max())


# --- completeness ---

RUN, SAMPLES = (
    "test_a_run_equals_the_same_run_by_library_calls",
    "test_samples_use_the_configured_sampler_grid_and_guidance_scale",
)
NETWORK = "test_a_network_is_the_module_of_its_name_with_its_numbers"
OPTIMISER = "test_the_optimiser_is_adam_with_clipping_warm_up_decay_and_cosine"
CHECKS = {
    **dict.fromkeys(("name", "steps", "batch_size", "seed", "ema_decay", "ema_widths", "data.workers"), RUN),
    "data.name": "test_a_toy_is_its_density_and_is_measured_on_draws_of_other_seeds",
    "data.path": "test_files_are_read_as_their_name_says",
    "data.conditional": "test_an_unconditional_network_gets_no_labels",
    "data.image_size": "test_images_are_scaled_to_the_size_of_the_configuration",
    "data.channels": "test_images_have_the_channels_of_the_configuration",
    "data.skip_bad": "test_an_item_that_is_skipped_gives_way_to_the_next_and_the_rest_stay",
    "data.flip": "test_digits_are_split_and_flipped_as_configured",
    "data.holdout": "test_a_share_is_held_out_by_its_seed",
    "data.holdout_seed": "test_a_share_is_held_out_by_its_seed",
    "guidance.dropout": "test_labels_are_dropped_with_the_configured_probability",
    **dict.fromkeys(("guidance.scale", "sampler.steps"), SAMPLES),
    "sampler.name": "test_a_sampler_takes_the_steps_of_its_name",
    "sampler.grid": "test_a_grid_has_the_times_of_its_name",
    "sampler.eta": "test_eta_sets_the_samplers_that_have_one_and_is_refused_for_others",
}
GROUPS = {
    "process": "test_a_process_has_the_alpha_and_sigma_of_its_name",
    "parameterisation": "test_a_prediction_has_the_coefficients_of_its_name",
    "weighting": "test_a_weighting_is_the_function_of_its_name",
    "times": "test_times_have_the_distribution_of_their_name",
    "network": NETWORK,
    "optimiser": OPTIMISER,
}
"""Of groups whose tests see by themselves that each of their fields has a value of its own there."""
FILES = ("test_options_train.py", "test_registry_names.py", "test_config_networks.py", "test_data_identity.py")


def test_every_field_has_its_check():
    """A new field needs a test that it does what it says: name it here."""
    left = {path for path in leaves(c.Config()) if path.partition(".")[0] not in GROUPS}
    assert left == set(CHECKS)
    here = Path(__file__).parent
    text = "".join((here / name).read_text() for name in FILES)
    assert {*CHECKS.values(), *GROUPS.values()} <= set(re.findall(r"^def (test_\w+)", text, re.MULTILINE))
