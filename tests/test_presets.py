"""Presets whose data come from files train on them; the files are looked for as in test_data_files."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from real_data import DATA, needs_cifar

from diffjax import config as c
from diffjax.training import Objective, init_state, make_ema, make_train_step, pmap_layout, train


@needs_cifar
@pytest.mark.slow
@pytest.mark.relative
def test_cifar10_trains(tmp_path):
    """The preset's own network and loss, eight images a step, on two devices: several minutes on two idle cores."""
    preset = c.PRESETS["cifar10"]
    data_config = dataclasses.replace(preset.data, path=str(DATA / "cifar10.zip"))
    config = dataclasses.replace(preset, steps=100, batch_size=8, data=data_config)
    data = c.build_data(config.data)
    parts = c.build(config, data.classes)
    x0, cond = data.source(0, 0, 1)
    state = init_state(jax.random.key(0), parts.diffusion.network, parts.tx, x0, cond)
    step = make_train_step(Objective(parts.loss, parts.tx), ema=make_ema(0.99), axis_name="data")
    layout = pmap_layout(step, jax.devices()[:2])
    log = tmp_path / "metrics.jsonl"
    options = {"steps": 100, "batch_size": 8, "seed": 0, "log": log, "log_every": 1, "progress": False}
    state = train(state, layout, data.source, **options)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = np.array([line["loss"] for line in lines])
    assert len(losses) == 100
    assert losses[-30:].mean() < 0.7 * losses[:10].mean()  # 1 at the start, the last convolution being zero
    assert not any(line["skipped"] for line in lines)
