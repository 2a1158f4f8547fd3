"""The training step of every few-step loss over eight devices: pmap and FSDP make the update of jit.

These losses are means over samples whose times, pairs, levels and noise depend on their global index, so that a batch
may be split. One update by SGD with momentum, whose trace is the gradient itself.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets import perturbed

import diffjax as dj
from diffjax import flow_maps, losses, networks, training
from diffjax.config import LOSSES

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
B, DEVICES = 32, 8
PROCESS = dj.Cosine()
NETWORK = dj.from_linen(networks.MLP(width=16, depth=1))
DIFFUSION = dj.Diffusion(NETWORK, PROCESS, dj.parameterisation.EDMPrediction(1.0, clock="angle"))
EXACT = dj.exact_denoiser(dj.Gaussian(jnp.array([0.5, -0.5]), jnp.array([0.25, 1.0])), PROCESS)
TX = optax.sgd(0.1, momentum=0.9)


def _mean_flow(params, key, x0, average, rows, **given):
    pairs = flow_maps.PartlyEqual(flow_maps.SortedPairs(dj.UniformTimes(PROCESS)), 0.5)
    return flow_maps.mean_flow_loss(DIFFUSION, params, key, x0, pairs=pairs, power=0.5, **given, **rows)


def _shortcut(params, key, x0, average, rows):
    return flow_maps.shortcut_loss(DIFFUSION, params, key, x0, target_params=average, finest=8, share=0.5, **rows)


def _consistency(params, key, x0, average, rows, **given):
    levels = flow_maps.EDMLevels(PROCESS, 20, lognormal=(-1.1, 2.0))
    given |= {"levels": levels, "penalty": losses.PseudoHuber(0.03), "weighting": flow_maps.OverGap()}
    return flow_maps.consistency_loss(DIFFUSION, params, key, x0, **given, **rows)


def _easy(params, key, x0, average, rows):
    levels = flow_maps.ECTLevels(dj.process.LognormalTimes(PROCESS, -1.1, 2.0), 0)
    given = {"levels": levels, "penalty": flow_maps.root_mean_square, "weighting": flow_maps.edm_weighting}
    return flow_maps.consistency_loss(DIFFUSION, params, key, x0, **given, **rows)


def _continuous(params, key, x0, average, rows, **given):
    given["times"] = dj.process.LognormalTimes(PROCESS, -1.0, 1.4)
    return flow_maps.continuous_consistency_loss(DIFFUSION, params, key, x0, **given, **rows)


def _progressive(params, key, x0, average, rows):
    grid = np.linspace(1.0, 0.0, 5)
    return flow_maps.progressive_loss(DIFFUSION, params, key, x0, teacher=EXACT, grid=grid, **rows)


CASES = {
    "mean_flow": _mean_flow,
    "improved_mean_flow": functools.partial(_mean_flow, improved=True),
    "mean_flow, teacher": functools.partial(_mean_flow, teacher=EXACT),
    "shortcut": _shortcut,
    "consistency": _consistency,
    "consistency, teacher": functools.partial(_consistency, teacher=EXACT, solver="heun"),
    "easy_consistency": _easy,
    "continuous_consistency": _continuous,
    "continuous_consistency, teacher": functools.partial(_continuous, teacher=EXACT),
    "progressive": _progressive,
}
"""(params, key, x0, average, {index, total}) -> (loss, aux)"""
QUICK = ("mean_flow", "shortcut", "consistency", "progressive")
ROUNDING = {"progressive": 4e-6}
"""Its weights max(snr, 1) reach thousands; the order of their sum depends on the machine: 1.06e-6 on one."""
TWO_TIMES = ("mean_flow", "improved_mean_flow", "mean_flow, teacher", "shortcut")


def first_update(name, kind):
    """(gradient, parameters, average, metrics) of the first step of a loss in a layout, on the host."""

    def loss_fn(params, x0, context):
        rows = {"index": context.index, "total": context.total}
        return CASES[name](params, context.key, x0, context.ema["target"], rows)

    def state():
        times = jnp.zeros((2, 2) if name in TWO_TIMES else 2)
        params = perturbed(NETWORK.init(jax.random.key(1), jnp.zeros((2, 2)), times), size=0.3)
        return training.state_from_params(jax.random.key(3), params, objective, averages=averages)

    objective, averages = training.Objective(loss_fn, TX), {"target": training.make_ema(0.9)}
    make = functools.partial(training.make_train_step, objective, ema=averages, levels=4)
    devices = jax.devices()[:DEVICES]
    layout = {
        "jit": lambda: training.jit_layout(make(), training.data_mesh(devices[:1])),
        "pmap": lambda: training.pmap_layout(make(axis_name="data"), devices),
        "fsdp": lambda: training.fsdp_layout(make(), training.make_mesh(fsdp=DEVICES, devices=devices), min_size=16),
    }[kind]()
    x0 = np.random.default_rng(7).normal([0.5, -0.5], [0.5, 1.0], (B, 2)).astype(np.float32)
    placed, metrics = layout.step(layout.init(state), layout.put_batch(x0))
    found = layout.get_state(placed)
    return jax.device_get((found.opt_state[0].trace, found.params, found.ema["target"], metrics))


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES])
def test_pmap_and_fsdp_make_the_update_of_jit(name):
    wanted = first_update(name, "jit")
    assert optax.tree.norm(wanted[0]) > 1e-2
    assert wanted[3]["skipped"] == 0
    for kind in ("pmap", "fsdp"):
        for part, right in zip(first_update(name, kind), wanted, strict=True):
            error = float(optax.tree.norm(jax.tree.map(jnp.subtract, part, right)))
            assert error <= ROUNDING.get(name, 1e-6) * float(optax.tree.norm(right)), (kind, error)


def test_every_flow_map_of_the_command_line_is_here():
    named = {name.partition(",")[0] for name in CASES}
    assert {name for name, row in LOSSES.items() if row.flow_map} <= named
