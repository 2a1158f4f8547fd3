"""Configurations: there and back, refused where they are wrong, and every name means something."""

import dataclasses
import json
from typing import get_args, get_type_hints

import jax
import numpy as np
import pytest

import diffjax as dj
from diffjax import config as c
from diffjax.data import from_images
from diffjax.samplers import step_weights

RNG = np.random.default_rng(0)


def changed(config=None, **changes):
    """A preset with nested fields changed: `changed(process__name="edm")`."""
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
        (lambda d: d | {"network": d["network"] | {"channels": [1, "2"]}}, r"network\.channels: int is needed"),
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
    config = changed(c.PRESETS["digits"], seed=7, network__channels=(48, 96), data__holdout=0.3)
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
        (c.FamilyConfig, c.FAMILIES),
        (c.ProcessConfig, c.PROCESSES),
        (c.ParameterisationConfig, c.PARAMETERISATIONS),
        (c.WeightingConfig, c.WEIGHTINGS),
        (c.TimesConfig, c.TIMES),
        (c.LossConfig, c.LOSSES),
        (c.SamplerConfig, c.STEPPERS),
        (c.DataConfig, c.DATA),
        (c.NetworkConfig, c.NETWORKS),
        (c.GuidanceConfig, c.GUIDANCES),
    ],
)
def test_every_name_is_in_its_table(cls, table):
    assert get_args(get_type_hints(cls)["name"]) == tuple(table)
    assert get_args(get_type_hints(c.SamplerConfig)["grid"]) == tuple(c.GRIDS)
    assert get_args(get_type_hints(c.SamplerConfig)["threshold"]) == tuple(c.THRESHOLDS)


SMALL = changed(network__width=8, network__depth=1)


def test_every_sampler_and_grid_builds():
    process = dj.Cosine()
    for grid in c.GRIDS:
        ts = c.build_grid(c.SamplerConfig(grid=grid, steps=5), process)
        for name in c.STEPPERS:
            weights = step_weights(c.build_stepper(c.SamplerConfig(name=name)), process, ts)
            assert all(len(leaf) == 5 and np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(weights))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"process__beta_min": 0.1}, r"process\.beta_min: cosine has no such number, got 0\.1"),
        ({"weighting__gamma": 5.0}, r"weighting\.gamma: native has no such number, got 5"),
        ({"times__std": 1.0}, r"times\.std: stratified has no such number, got 1"),
        ({"sampler__eta": 1.0}, r"sampler\.eta: dpmpp2m has no such number, got 1"),
        ({"sampler__name": "ddim", "sampler__eta": 2.0}, "eta: must lie in .* got 2"),
        ({"process__name": "edm", "process__sigma_min": -1.0}, "sigma_min: must be positive, got -1"),
        ({"network__width": 7}, "width: an even number is needed, got 7"),
        ({"steps": 0}, "steps: at least 1, got 0"),
        ({"batch_size": -3}, "batch_size: at least 1, got -3"),
        ({"sampler__steps": 0}, r"sampler\.steps: at least 1, got 0"),
        ({"seed": -1}, r"seed: a whole number in 0 \.\. 4294967295, got -1"),
        ({"optimiser__learning_rate": float("nan")}, r"optimiser\.learning_rate: a positive number, got nan"),
        ({"optimiser__clip": 0.0}, r"optimiser\.clip: a positive number, got 0"),
        ({"optimiser__clip": float("inf")}, r"optimiser\.clip: a positive number, got inf"),
        ({"optimiser__warmup": -1}, r"optimiser\.warmup: at least 0, got -1"),
        ({"optimiser__final": 1.5}, r"optimiser\.final: a number in \[0, 1\], got 1\.5"),
        ({"optimiser__weight_decay": -0.1}, r"optimiser\.weight_decay: a finite number, not below 0, got -0\.1"),
        ({"network__depth": -1}, r"network\.depth: at least 0, got -1"),
        ({"network__head_channels": 0}, r"network\.head_channels: at least 1, got 0"),
        ({"guidance__dropout": 1.5}, r"guidance\.dropout: a number in \[0, 1\], got 1\.5"),
        ({"guidance__scale": -1.0}, r"guidance\.scale: a finite number, not below 0, got -1\.0"),
        ({"network__mlp_ratio": 2.0}, r"network\.mlp_ratio: mlp has no such number, got 2"),
        ({"sampler__rho": 5.0}, r"sampler\.rho: logsnr has no such number, got 5"),
        ({"sampler__quantile": 0.9}, r"sampler\.quantile: static has no such number, got 0\.9"),
        ({"sampler__grid": "edm", "sampler__rho": -1.0}, "rho: must be positive, got -1"),
        ({"guidance__phi": 0.5}, r"guidance\.phi: cfg has no such number, got 0\.5"),
        ({"guidance__name": "rescaled", "guidance__phi": 1.5}, r"phi: must lie in \[0, 1\], got 1\.5"),
        ({"guidance__interval": (2.0, 1.0)}, r"guidance\.interval: two numbers, the first below .* got \(2\.0, 1\.0\)"),
        ({"guidance__interval": (1.0,)}, r"guidance\.interval: two numbers, the first below the second, got \(1\.0,\)"),
        ({"guidance__logsnr_start": float("nan")}, r"guidance\.logsnr_start: a finite number, got nan"),
        ({"sampler__name": "cfgpp"}, r"sampler\.name: cfgpp is a form of guidance, and this run has no classes"),
        ({"guidance__scale": float("inf")}, r"guidance\.scale: a finite number, .* got inf"),
    ],
)
def test_numbers_that_are_wrong_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        c.build(changed(SMALL, **changes), None)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.array([[1.0], [np.nan], [2.0]])}, r"data\.path: x in .* holds nan"),
        (
            {"x": np.ones((4, 1)), "y": np.ones(3, int)},
            r"data\.path: y in .* must be 4 labels from 0, or .* \[4, k\], got int64\[3\]",
        ),
        ({"x": np.ones((4, 1)), "y": np.ones(4)}, r"data\.path: y in .* got float64\[4\]"),
        ({"x": np.ones((4, 1)), "y": np.ones((3, 2))}, r"data\.path: y in .* got float64\[3, 2\]"),
        ({"x": np.ones((4, 1)), "y": np.ones((4, 0))}, r"data\.path: y in .* got float64\[4, 0\]"),
        (
            {"x": np.ones((4, 1)), "y": np.full((4, 2), np.nan)},
            r"data\.path: y in .* holds nan; conditions must be finite",
        ),
        (
            {"x": np.ones((4, 1)), "y": np.full((4, 2), 12.0)},
            r"data\.path: y in .* of order one, got 12; give \(y - mean",
        ),
        ({"z": np.ones(4)}, r"data\.path: no \.npz with an array x"),
        ({"x": np.array([{}, 3])}, r"data\.path: no \.npz with an array x"),
        ({"x": np.ones((4, 1), complex)}, r"data\.path: x in .* floats in \[-1, 1\] or uint8, got complex128"),
        ({"x": np.ones((4, 1), int)}, r"data\.path: x in .* floats in \[-1, 1\] or uint8, got int64"),
        ({"x": np.array([["a"], ["b"]])}, r"data\.path: x in .* floats in \[-1, 1\] or uint8, got <U1"),
        ({"x": np.ones((0, 2))}, r"data\.path: x in .* is empty .* got shape \(0, 2\)"),
        ({"x": np.array([[1.0], [-255.0]])}, r"data\.path: x in .* must be floats in \[-1, 1\], got -255"),
        ({"x": np.ones((4, 1)), "y": np.arange(4) + 2**32 - 3}, r"data\.path: y in .* of 32 bits, got 4294967296"),
        ({"x": np.ones((1, 1))}, r"data\.holdout: 0\.2 leaves nothing"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        c.build_data(c.DataConfig(name="file", path=str(tmp_path / "a.npz")))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            2 * RNG.random((4, 3, 8, 6)) - 1,
            r"taken for images \[n, height 3, width 8, 6 channels\]; .*moveaxis\(x, 1, -1\)",
        ),
        (RNG.random((4, 8, 8, 3)), r"holds floats in \[0\.\d+, (0\.\d+|1)\]: taken as they are, .* 2 \* x - 1"),
        (np.eye(4, dtype=np.uint8), r"holds bytes of 0 and 1 alone: taken for images in 0 \.\. 255"),
    ],
)
def test_an_array_that_may_mean_something_else_is_read_as_it_is_with_a_warning(tmp_path, x, message):
    np.savez(tmp_path / "a.npz", x=x)
    with pytest.warns(UserWarning, match=rf"data\.path: x in .*a\.npz .*{message}"):
        data = c.build_data(c.DataConfig(name="file", path=str(tmp_path / "a.npz")))
    assert data.shape == x.shape[1:]
    if x.ndim == 4:
        with pytest.warns(UserWarning, match=message):
            from_images(x)


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
        (c.DataConfig(name="digits", image_size=8), r"data\.image_size: digits has no such number, got 8"),
        (c.DataConfig(name="digits", channels=1), r"data\.channels: digits has no such number, got 1"),
        (c.DataConfig(name="mnist", path="/absent", channels=1), r"data\.channels: mnist has no such number, got 1"),
        (c.DataConfig(name="image_folder", path="/absent", channels=2), r"data\.channels: 1 or 3, got 2"),
        (c.DataConfig(name="mixture", flip=True), r"data\.flip: mixture has no images to flip"),
        (c.DataConfig(workers=-1), r"data\.workers: at least 0, got -1"),
        (c.DataConfig(name="mnist", path="/absent"), r"data\.path: no train-images-idx3-ubyte\[\.gz\] in /absent"),
        (
            c.DataConfig(name="mnist", path="/absent", image_size=8),
            r"data\.image_size: mnist has no such number, got 8",
        ),
        (c.DataConfig(name="image_folder", path="/absent"), r"data\.path: /absent: no such folder or zip"),
        (c.DataConfig(name="cifar10", path="/absent"), r"data\.path: /absent is no folder or tar"),
        (c.DataConfig(name="image_folder", path="/absent", image_size=0), r"data\.image_size: at least 1, got 0"),
        (c.DataConfig(name="digits", cells=4), r"data\.cells: digits has no such number, got 4"),
        (c.DataConfig(name="checkerboard", cells=3), r"data\.cells: an even number is needed, got 3"),
        (c.DataConfig(name="digits", holdout=0.0), r"data\.holdout: nothing is held out"),
    ],
)
def test_data_that_cannot_be_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        c.build_data(config)


def test_an_unknown_name_is_told_with_the_nearest():
    """Python checks no Literal: each name of a configuration, also where a part of it is built alone."""
    for part, text in (
        (c.Config(process=c.ProcessConfig(name="cosin")), "process.name: one of .* got 'cosin'; did you mean cosine?"),
        (c.Config(sampler=c.SamplerConfig(name="ddmi")), "sampler.name: one of .* got 'ddmi'; did you mean ddim?"),
        (c.Config(sampler=c.SamplerConfig(grid="logsrn")), "sampler.grid: one of .*; did you mean logsnr?"),
        (c.Config(sampler=c.SamplerConfig(threshold="dinamic")), "sampler.threshold: one of .*; did you mean dynamic?"),
        (c.Config(guidance=c.GuidanceConfig(name="cfgzero")), "guidance.name: one of .*; did you mean cfg_zero?"),
        (
            c.Config(network=c.NetworkConfig(name="resnet")),
            "network.name: one of .* got 'resnet'; did you mean unet?",
        ),
    ):
        with pytest.raises(ValueError, match="^" + text.replace("?", r"\?") + "$"):
            c.check_config(part)
    process = c.PROCESSES["cosine"]()
    for build, text in (
        (lambda: c.build_data(c.DataConfig(name="two_moon")), "data.name: .*; did you mean two_moons"),
        (lambda: c.build_network(c.NetworkConfig(name="unett"), None), "network.name: .*; did you mean unet"),
        (lambda: c.build_stepper(c.SamplerConfig(name="heum")), "sampler.name: .*; did you mean heun"),
        (lambda: c.build_grid(c.SamplerConfig(grid="unifrom"), process), "sampler.grid: .*; did you mean uniform"),
        (lambda: c.from_json('{"stpes": 3}'), "stpes: unknown key, with value 3; did you mean steps"),
        (lambda: c.from_json('{"times": {"name": "mod"}}'), "times.name: .*; did you mean mode"),
    ):
        with pytest.raises(ValueError, match=text):
            build()
    for table, name, near in (
        (c.PROCESSES, "edmm", "edm"),
        (c.PARAMETERISATIONS, "velocty", "velocity"),
        (c.WEIGHTINGS, "min_srn", "min_snr"),
        (c.TIMES, "stratifed", "stratified"),
        (c.STEPPERS, "dpmpp2m ", "dpmpp2m"),
        (c.GRIDS, "logsnrr", "logsnr"),
        (c.TOYS, "swissroll", "swiss_roll"),
        (c.PRESETS, "toy2", "toy2d"),
    ):
        with pytest.raises(KeyError, match=f"name: one of .* is needed, got '{name}'; did you mean {near}"):
            table[name]
        assert table.get(name) is None
        assert name not in table
