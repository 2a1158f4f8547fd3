"""Consistency losses as a training run calls them: float32, jit, devices, labels, dropout, levels by the step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import flow_maps, losses

PROCESS = dj.EDM()
X0 = jax.random.normal(jax.random.key(1), (8, 2))
LABELS = jnp.arange(8) % 3
PARAMS = {"gain": jnp.asarray(0.3), "table": jnp.array([[0.1], [-0.2], [0.4]])}
KEY = jax.random.key(0)


def network(seen=None):
    """y = gain x + c_noise + a row for each label; labels, times and keys that it is given are put in `seen`."""

    def apply(params, x, c_noise, cond=None, *, key=None):
        if seen is not None:
            seen.append((c_noise, cond, key))
        return params["gain"] * x + 0.1 * c_noise[:, None] + params["table"][cond]

    return dj.Network(lambda *_: None, apply)


def diffusion(seen=None):
    return dj.Diffusion(network(seen), PROCESS, dj.parameterisation.EDMPrediction(clock="angle"))


def on_levels(params, x0, cond, step=1000, *, seen=None, **more):
    levels = flow_maps.EDMLevels(PROCESS, flow_maps.ict_levels(step, 8000), lognormal=(-1.1, 2.0))
    kwargs = {"penalty": losses.PseudoHuber(), "weighting": flow_maps.OverGap(), "levels": levels} | more
    return flow_maps.consistency_loss(diffusion(seen), params, KEY, x0, cond, **kwargs)


def closing_in(params, x0, cond, *, seen=None, **more):
    levels = flow_maps.ECTLevels(dj.process.LognormalTimes(PROCESS, -1.1, 2.0), 3)
    kwargs = {"penalty": flow_maps.root_mean_square, "weighting": flow_maps.edm_weighting, "levels": levels} | more
    return flow_maps.consistency_loss(diffusion(seen), params, KEY, x0, cond, **kwargs)


def continuous(params, x0, cond, *, seen=None, **more):
    times = dj.process.LognormalTimes(PROCESS, -1.0, 1.4)
    return flow_maps.continuous_consistency_loss(diffusion(seen), params, KEY, x0, cond, times=times, **more)


LOSSES = {"on levels": on_levels, "closing in": closing_in, "continuous": continuous}


@pytest.mark.slow
def test_parts_on_devices_make_the_whole_and_jit_changes_nothing():
    """Loss and gradient of a batch of 8 on 4 devices, by global index, for each loss."""

    def each(params, x0, cond, index):
        def of(loss):
            of_params = lambda p: loss(p, x0, cond, index=index, total=8)
            (value, aux), slope = jax.value_and_grad(of_params, has_aux=True)(params)
            return value, slope, aux["per_sample"]

        return {name: of(loss) for name, loss in LOSSES.items()}

    whole = jax.jit(each)(PARAMS, X0, LABELS, jnp.arange(8))
    parts = lambda leaf: leaf.reshape(4, 2, *leaf.shape[1:])
    of_parts = jax.pmap(each, in_axes=(None, 0, 0, 0))(PARAMS, parts(X0), parts(LABELS), parts(jnp.arange(8)))
    for name, (value, slope, per_sample) in whole.items():
        split = of_parts[name]
        np.testing.assert_allclose(np.mean(split[0]), value, rtol=1e-6)
        mean = jax.tree.map(lambda leaf: np.mean(leaf, axis=0), split[1])
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), mean, slope)
        np.testing.assert_allclose(np.ravel(split[2]), per_sample, rtol=1e-5, atol=1e-6)
        assert np.all(np.isfinite(per_sample))
        assert np.isfinite(value)
        assert value > 0


def test_labels_reach_both_answers_with_one_dropout_key_and_a_teacher_has_its_own():
    for name, loss in LOSSES.items():
        seen = []
        loss(PARAMS, X0, LABELS, seen=seen)
        assert len(seen) == (1 if name == "continuous" else 2)
        for _, cond, key in seen:
            np.testing.assert_array_equal(cond, LABELS)
            np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(seen[0][2]))
    told = []
    teacher = dj.make_denoiser(diffusion(told), PARAMS, (LABELS + 1) % 3)
    for loss in LOSSES.values():
        seen = []
        plain = loss(PARAMS, X0, LABELS)[0]
        assert loss(PARAMS, X0, LABELS, teacher=teacher, seen=seen)[0] != plain
        np.testing.assert_array_equal(told[-1][1], (LABELS + 1) % 3)
        np.testing.assert_array_equal(seen[-1][1], LABELS)
        assert told[-1][2] is None


def test_a_grid_that_follows_the_step_compiles_once():
    """Number of levels and stage are values: each step draws from its own levels."""
    count = []

    @jax.jit
    def step(params, step):
        count.append(1)
        aux = on_levels(params, X0, LABELS, step)[1]
        stage = flow_maps.ECTLevels(dj.process.LognormalTimes(PROCESS), step // 2000)
        n = flow_maps.ct_levels(step, 8000)
        return aux["t"], aux["s"], closing_in(params, X0, LABELS, levels=stage)[1]["s"], n, flow_maps.ct_decay(n)

    gaps = []
    for number, intervals in ((0, 10), (1000, 20), (7999, 1280)):
        t, s, second, n, decay = step(PARAMS, jnp.asarray(number))
        place = np.asarray(t) * intervals  # EDM's levels are uniform on the process's clock
        np.testing.assert_allclose(place, np.round(place), atol=5e-3)
        np.testing.assert_allclose((t - s) * intervals, 1.0, atol=5e-3)
        gaps.append(np.mean(second))
        assert n == flow_maps.ct_levels(number, 8000)
        np.testing.assert_allclose(decay, 0.9 ** (2 / int(n)), rtol=1e-6)
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[-1]
    assert len(count) == 1
