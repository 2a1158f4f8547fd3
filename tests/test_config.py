"""Configurations: there and back, refused where they are wrong, and every name means something."""

import dataclasses
import json
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import config as c, process as processes
from diffjax.config._items import ITEMS
from diffjax.config._names import construct
from diffjax.samplers import DDIM


def changed(config=None, **changes):
    """A preset with nested fields changed: `changed(process__name="karras")`."""
    config = config or c.PRESETS["toy2d"]
    for path, value in changes.items():
        group, _, name = path.rpartition("__")
        part = dataclasses.replace(getattr(config, group), **{name: value}) if group else value
        config = dataclasses.replace(config, **{group or name: part})
    return config


@pytest.mark.parametrize("name", c.PRESETS)
def test_presets_survive_json(name):
    config = c.PRESETS[name]
    assert c.from_json(c.to_json(config)) == config
    assert config.name == name
    odd = changed(config, seed=7, process__beta_min=0.25, network__attention=(), data__path="x.npz", sampler__eta=1.0)
    assert c.from_json(c.to_json(odd)) == odd != config


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d | {"stpes": 3}, "stpes: unknown key, with value 3"),
        (lambda d: d | {"process": d["process"] | {"beta": 1}}, r"process\.beta: unknown key, with value 1"),
        (lambda d: d | {"steps": 3.5}, r"steps: int is needed, got 3\.5"),
        (lambda d: d | {"steps": True}, "steps: int is needed, got True"),
        (lambda d: d | {"ema_decay": "0.9"}, r"ema_decay: float is needed, got '0\.9'"),
        (lambda d: d | {"network": 3}, "network: an object is needed, got 3"),
        (lambda d: d | {"network": d["network"] | {"multipliers": [1, "2"]}}, r"network\.multipliers: int is needed"),
        (lambda d: d | {"process": d["process"] | {"name": "vp"}}, r"process\.name: one of variance_pres.* got 'vp'"),
        (lambda d: [d], "config: an object is needed"),
    ],
)
def test_json_that_is_wrong_is_named(edit, message):
    text = json.dumps(edit(json.loads(c.to_json(c.PRESETS["digits"]))))
    with pytest.raises(ValueError, match=message):
        c.from_json(text)
    with pytest.raises(ValueError, match="config: not JSON"):
        c.from_json(text[:-5])


def test_a_run_from_before_a_field_was_has_its_default():
    config = changed(c.PRESETS["digits"], seed=7, network__channels=48, data__holdout=0.3)
    values = json.loads(c.to_json(config))
    del values["ema_widths"], values["network"]["remat"], values["data"]["workers"], values["times"]
    old = c.from_json(json.dumps(values))
    assert old == config
    assert c.differences(old, changed(config, network__dropout=0.5)) == [("network.dropout", 0.0, 0.5)]


def test_whole_numbers_are_numbers():
    values = json.loads(c.to_json(c.PRESETS["toy2d"])) | {"ema_decay": 0}
    read = c.from_json(json.dumps(values)).ema_decay
    assert (read, type(read)) == (0.0, float)


def test_differences_are_named_by_path():
    a = c.PRESETS["toy2d"]
    assert c.differences(a, a) == []
    assert c.differences(a, changed(a, steps=5, network__width=8)) == [("steps", 3000, 5), ("network.width", 128, 8)]


@pytest.mark.parametrize(
    ("cls", "table"),
    [
        (c.ProcessConfig, c.PROCESSES),
        (c.ParameterisationConfig, c.PARAMETERISATIONS),
        (c.WeightingConfig, c.WEIGHTINGS),
        (c.TimesConfig, c.TIMES),
        (c.SamplerConfig, c.STEPPERS),
        (c.DataConfig, ("digits", *c.TOYS, *ITEMS)),
    ],
)
def test_every_name_is_in_its_table(cls, table):
    assert get_args(get_type_hints(cls)["name"]) == tuple(table)
    assert get_args(get_type_hints(c.SamplerConfig)["grid"]) == tuple(c.GRIDS)


def finite_loss(config):
    """The loss of a fresh network on a batch of a configuration's data."""
    data = c.build_data(config.data)
    parts = c.build(config, data.classes)
    x0, cond = data.source(0, 0, 8)
    params = parts.network.init(jax.random.key(0), jnp.asarray(x0), jnp.zeros(8), cond)
    loss, aux = parts.loss(params, jax.random.key(1), (jnp.asarray(x0), cond), jnp.arange(8), 8)
    assert np.isfinite(loss)
    assert parts.ts.shape == (config.sampler.steps + 1,)
    return parts, loss, aux


SMALL = changed(network__width=8, network__depth=1)
QUICK = ("variance_preserving", "cosine", "karras", "native", "min_snr", "sigmoid", "uniform", "stratified", "mode")


def each(field, table):
    """A change for each name of a table, those not in QUICK among the slow tests: each has a relative in QUICK."""
    return [
        pytest.param({field: name}, marks=[] if name in QUICK else [pytest.mark.slow, pytest.mark.relative])
        for name in table
    ]


@pytest.mark.parametrize(
    "changes",
    [
        *each("process__name", c.PROCESSES),
        *({"parameterisation__name": name} for name in c.PARAMETERISATIONS),
        *each("weighting__name", c.WEIGHTINGS),
        *each("times__name", c.TIMES),
        *({"data__name": name, "data__conditional": True} for name in c.TOYS),
        {"sampler__name": "seeds2", "sampler__grid": "snr"},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_every_name_builds_and_trains(changes):
    finite_loss(changed(SMALL, **changes))


def test_every_sampler_and_grid_builds():
    process = processes.Cosine()
    for grid in c.GRIDS:
        ts = c.build_grid(c.SamplerConfig(grid=grid, steps=5), process)
        for name in c.STEPPERS:
            weights = c.build_stepper(c.SamplerConfig(name=name)).prepare(process, ts)
            assert all(len(leaf) == 5 and np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(weights))
    assert c.build_stepper(c.SamplerConfig(name="seeds2", eta=0.5)).stochastic


@pytest.mark.parametrize(
    ("part", "table", "name", "numbers"),
    [
        ("process", c.PROCESSES, "ornstein_uhlenbeck", {"horizon": 3.0}),
        ("process", c.PROCESSES, "polynomial", {"power": 3.0}),
        ("process", c.PROCESSES, "offset_cosine", {"offset": 0.02}),
        ("weighting", c.WEIGHTINGS, "sigmoid", {"bias": -2.0}),
        ("weighting", c.WEIGHTINGS, "p2", {"k": 2.0, "gamma": 0.5}),
        ("weighting", c.WEIGHTINGS, "soft_min_snr", {"gamma": 3.0}),
    ],
)
def test_each_familys_numbers_arrive(part, table, name, numbers):
    config = changed(**{f"{part}__name": name}, **{f"{part}__{k}": v for k, v in numbers.items()})
    made = construct(part, table, getattr(config, part))
    assert {k: round(float(getattr(made, k)), 6) for k in numbers} == numbers


def test_numbers_arrive():
    parts, _, _ = finite_loss(
        changed(
            SMALL,
            process__name="karras",
            process__sigma_max=20.0,
            parameterisation__name="karras",
            parameterisation__data_std=1.5,
            sampler__name="ddim",
            sampler__eta=0.5,
            sampler__steps=7,
        )
    )
    assert float(parts.process.sigma(1.0)) == pytest.approx(20.0)
    assert float(parts.parameterisation.data_std) == 1.5
    assert isinstance(parts.stepper, DDIM)
    assert float(parts.stepper.eta) == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"process__beta_min": 0.1}, r"process\.beta_min: cosine has no such number, got 0\.1"),
        ({"weighting__gamma": 5.0}, r"weighting\.gamma: native has no such number, got 5"),
        ({"times__std": 1.0}, r"times\.std: stratified has no such number, got 1"),
        ({"sampler__eta": 1.0}, r"sampler\.eta: dpmpp2m has no such number, got 1"),
        ({"sampler__name": "ddim", "sampler__eta": 2.0}, "eta: must lie in .* got 2"),
        ({"process__name": "karras", "process__sigma_min": -1.0}, "sigma_min: must be positive, got -1"),
        ({"network__width": 7}, "width: an even number is needed, got 7"),
        ({"steps": 0}, "steps: at least 1, got 0"),
        ({"batch_size": -3}, "batch_size: at least 1, got -3"),
        ({"sampler__steps": 0}, r"sampler\.steps: at least 1, got 0"),
        ({"seed": -1}, r"seed: a whole number in 0 \.\. 4294967295, got -1"),
        ({"optimiser__learning_rate": float("nan")}, r"optimiser\.learning_rate: a positive number, got nan"),
        ({"optimiser__clip": 0.0}, r"optimiser\.clip: a positive number, got 0"),
        ({"guidance__dropout": 1.5}, r"guidance\.dropout: a number in \[0, 1\], got 1\.5"),
        ({"guidance__scale": -1.0}, r"guidance\.scale: a finite number, not below 0, got -1\.0"),
        ({"guidance__scale": float("inf")}, r"guidance\.scale: a finite number, .* got inf"),
    ],
)
def test_numbers_that_are_wrong_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        c.build(changed(SMALL, **changes), None)


def test_optimiser_warms_up_and_decays():
    # The first update of Adam is learning rate times the gradient's sign.
    config = c.OptimiserConfig(learning_rate=0.1, warmup=4, clip=1e9)
    tx = c.build_optimiser(config, 20)
    params, state, moves = jnp.zeros(()), None, []
    state = tx.init(params)
    for _ in range(20):
        updates, state = tx.update(jnp.ones(()), state, params)
        moves.append(-float(updates))
    np.testing.assert_allclose(moves[:5], [0, 0.025, 0.05, 0.075, 0.1], rtol=1e-3, atol=1e-8)
    assert moves[4] > moves[10] > moves[19] > 0
    assert moves[19] == pytest.approx(0.05 * (1 + np.cos(np.pi * 15 / 16)), rel=1e-3)
    short = c.build_optimiser(config, 1)  # a warm-up longer than the run
    assert short.init(params) is not None


def test_class_is_hidden_from_the_share_that_was_asked_for():
    config = changed(SMALL, data__conditional=True, guidance__dropout=1.0)
    data = c.build_data(config.data)
    parts = c.build(config, data.classes)
    assert data.classes == parts.null == 8
    x0, cond = data.source(0, 0, 64)
    params = parts.network.init(jax.random.key(0), jnp.asarray(x0), jnp.zeros(64), cond)
    rng = np.random.default_rng(0)  # fresh networks answer 0, whatever they are told
    params = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32), params)
    loss = lambda cond: float(parts.loss(params, jax.random.key(1), (jnp.asarray(x0), cond), jnp.arange(64), 64)[0])
    assert loss(cond) == loss(np.full(64, 8, np.int32)) == loss((cond + 1) % 8)
    told = c.build(changed(config, guidance__dropout=0.0), 8).loss
    hear = lambda cond: float(told(params, jax.random.key(1), (jnp.asarray(x0), cond), jnp.arange(64), 64)[0])
    assert hear(cond) != hear((cond + 1) % 8)


def test_digits_are_split_and_told_or_not():
    data = c.build_data(c.PRESETS["digits"].data)
    assert (data.shape, data.classes) == ((8, 8, 1), 10)
    assert len(data.train[0]) + len(data.held_out[0]) == 1797
    assert len(data.held_out[0]) == pytest.approx(0.2 * 1797, abs=5)
    plain = c.build_data(dataclasses.replace(c.PRESETS["digits"].data, conditional=False))
    assert plain.classes is None
    assert plain.source(0, 0, 4)[1] is None


def test_a_file_of_ones_own(tmp_path):
    x = np.arange(10 * 4, dtype=np.uint8).reshape(10, 2, 2, 1)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(10) % 3)
    config = c.DataConfig(name="file", path=str(tmp_path / "a.npz"), holdout=0.3)
    data = c.build_data(config)
    assert (data.shape, data.classes, len(data.train[0]), len(data.held_out[0])) == ((2, 2, 1), 3, 7, 3)
    both = np.concatenate([data.train[0], data.held_out[0]])
    np.testing.assert_allclose(np.sort(both.ravel()), x.ravel() / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.array([[1.0], [np.nan], [2.0]])}, r"data\.path: x in .* holds nan"),
        ({"x": np.ones((4, 1)), "y": np.ones(3, int)}, r"data\.path: y in .* must be 4 labels from 0, got int64\[3\]"),
        ({"x": np.ones((4, 1)), "y": np.ones(4)}, r"data\.path: y in .* got float64\[4\]"),
        ({"z": np.ones(4)}, r"data\.path: no \.npz with an array x"),
        ({"x": np.array([{}, 3])}, r"data\.path: no \.npz with an array x"),
        ({"x": np.ones((4, 1), complex)}, r"data\.path: x in .* floats in \[-1, 1\] or uint8, got complex128"),
        ({"x": np.ones((4, 1), int)}, r"data\.path: x in .* floats in \[-1, 1\] or uint8, got int64"),
        ({"x": np.array([["a"], ["b"]])}, r"data\.path: x in .* floats in \[-1, 1\] or uint8, got <U1"),
        ({"x": np.ones((0, 2))}, r"data\.path: x in .* is empty .* got shape \(0, 2\)"),
        ({"x": np.array([[1.0], [-255.0]])}, r"data\.path: x in .* must be floats in \[-1, 1\], got -255"),
        ({"x": np.ones((1, 1))}, r"data\.holdout: 0\.2 leaves nothing"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        c.build_data(c.DataConfig(name="file", path=str(tmp_path / "a.npz")))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_that_was_cut_short_is_named(tmp_path, share):
    np.savez_compressed(tmp_path / "a.npz", x=np.random.default_rng(0).uniform(-1, 1, (100, 4)))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"data\.path: no \.npz with an array x at .*a\.npz"):
        c.build_data(c.DataConfig(name="file", path=str(tmp_path / "a.npz")))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (c.DataConfig(holdout_seed=-1), r"data\.holdout_seed: a whole number .* got -1"),
        (c.DataConfig(name="file", path="/absent.npz"), r"data\.path: no \.npz with an array x at /absent"),
        (c.DataConfig(name="file"), r"data\.path: file needs the place of its files, got None"),
        (c.DataConfig(name="digits", path="a.npz"), r"data\.path: digits reads no file, got a\.npz"),
        (c.DataConfig(name="digits", image_size=8), r"data\.image_size: digits has a size of its own, got 8"),
        (c.DataConfig(name="mixture", flip=True), r"data\.flip: mixture has no images to flip"),
        (c.DataConfig(workers=-1), r"data\.workers: at least 0, got -1"),
        (c.DataConfig(name="mnist", path="/absent"), r"data\.path: no train-images-idx3-ubyte\[\.gz\] in /absent"),
        (c.DataConfig(name="mnist", path="/absent", image_size=8), r"data\.image_size: .* image_folder only, got 8"),
        (c.DataConfig(name="image_folder", path="/absent"), r"data\.path: /absent: no such folder or zip"),
        (c.DataConfig(name="cifar10", path="/absent"), r"data\.path: /absent is no folder or tar"),
        (c.DataConfig(name="digits", holdout=0.0), r"data\.holdout: nothing is held out"),
    ],
)
def test_data_that_cannot_be_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        c.build_data(config)
