"""Shortcut models: what their loss is least at is Euler's sampler of the shortest steps, in 1, 2, 4, ... steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PROCESSES

import diffjax as dj
from diffjax import flow_maps, process as processes

FINEST = 4
PAIRS = [(i, i + n) for n in (1, 2, 4) for i in range(0, FINEST, n)]
"""The dyadic steps of a grid of four; the first four are the shortest."""


def data():
    return dj.Gaussian(jnp.array([0.3, -0.2]), jnp.array([0.25, 2.89]))


def line_grid(diffusion, n):
    return np.asarray(processes.line_grid(diffusion.process, n, diffusion.parameterisation.data_std))


def affine(process):
    """(Diffusion, grid): a network with a gain [7, 2] and a shift [7, 2] for each pair, which it knows by c_noise."""
    p = dj.X0Prediction(0.8)
    diffusion = dj.Diffusion(dj.Network(None, lambda: None), process, p)
    grid = line_grid(diffusion, FINEST)
    clocks = p.noise_level(process, jnp.asarray(grid))[jnp.array(PAIRS)]

    def apply(params, x, c_noise, cond=None, *, key=None):
        apart = jnp.sum(jnp.abs(clocks - c_noise[:, None]), axis=2)
        row = jnp.argmin(apart, axis=1)
        return params["gain"][row] * x + params["shift"][row]

    return dj.Diffusion(dj.Network(None, apply), process, p), grid


def euler_map(diffusion, grid):
    """Parameters with which each pair's average denoiser is that of DDIM's shortest steps, one after the other."""
    process = diffusion.process
    denoiser = dj.exact_denoiser(data(), process)

    def average(x, i, j):
        xs = x
        for k in range(i, j):
            xs = processes.move(process, xs, grid[k], grid[k + 1], denoiser(xs, grid[k]))
        return processes.average(process, x, grid[i], grid[j], xs)

    answers = [average(jnp.array([[0.0, 0.0], [1.0, 1.0]]), i, j) for i, j in PAIRS]
    scale = jnp.array([diffusion.parameterisation.input_scale(process, grid[i]) for i, _ in PAIRS])
    return {
        "gain": jnp.stack([a[1] - a[0] for a in answers]) / scale[:, None],
        "shift": jnp.stack([a[0] for a in answers]),
    }


@functools.cache
def problem(name):
    with jax.ensure_compile_time_eval():
        diffusion, grid = affine(ALL_PROCESSES[name]())
        return diffusion, grid, euler_map(diffusion, grid)


@functools.cache
def slope_of(name):
    """The loss and its gradients at each of 100 batches of 64, as one program for all shares and parameters."""
    diffusion, _, _ = problem(name)

    def loss(params, key, share):
        x0 = data().sample(jax.random.fold_in(key, 1), 64)
        return flow_maps.shortcut_loss(diffusion, params, key, x0, target_params=params, finest=FINEST, share=share)[0]

    return jax.jit(jax.vmap(jax.value_and_grad(loss), (None, 0, None)))


def slopes(name, share, away=0.0):
    """Losses [100] and gradients [100, 7, 2] with the map's shifts moved, which are parameters and target."""
    _, _, params = problem(name)
    params = params | {"shift": params["shift"] + away}
    return slope_of(name)(params, jax.random.split(jax.random.key(7), 100), jnp.asarray(share))


@pytest.mark.parametrize("name", ["cosine", "edm"])
def test_self_consistency_is_met_by_eulers_map(name):
    value, slope = slopes(name, 1.0)
    assert np.max(value) < 1e-20
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(slope)) < 1e-9
    value, slope = slopes(name, 1.0, away=0.1)
    moved = np.abs(np.mean(slope["shift"], axis=0)).max(axis=1) > 1e-4
    assert np.min(value) > 1e-6
    np.testing.assert_array_equal(moved, np.arange(7) >= FINEST)  # the shortest steps are targets alone


@pytest.mark.parametrize("name", ["cosine", "edm"])
def test_flow_matching_has_no_slope_at_eulers_map(name):
    (_, right), (_, wrong) = slopes(name, 0.0), slopes(name, 0.0, away=0.1)
    for leaf in map(np.asarray, jax.tree.leaves(right)):
        np.testing.assert_array_equal(leaf[:, FINEST:], 0.0)  # the longer steps are no part of it
        assert np.abs(z_scores(leaf[:, :FINEST])).max() < 4.5
    assert np.abs(z_scores(np.asarray(wrong["shift"])[:, :FINEST])).max() > 9  # so it would be noticed


def z_scores(each):
    """Means of [n, ...] in their standard errors."""
    return np.mean(each, axis=0) / (np.std(each, axis=0, ddof=1) / np.sqrt(len(each)))


@pytest.mark.parametrize("name", ["cosine", "edm"])
def test_any_number_of_steps_is_eulers_sampler_of_the_shortest(name):
    diffusion, grid, params = problem(name)
    process = diffusion.process
    F = dj.make_flow_map(diffusion, params, knows=processes.Dyadic(tuple(grid)))
    xT = process.sigma(1.0) * jax.random.normal(jax.random.key(1), (5, 2))
    right = dj.sample(None, process, dj.exact_denoiser(data(), process), xT, grid, dj.DDIM(), final_denoise=False)
    for n in (1, 2, 4):
        found = dj.sample(None, process, F, xT, line_grid(diffusion, n), dj.Jump())
        np.testing.assert_allclose(found, right, rtol=1e-10)


def test_steps_are_drawn_as_declared():
    """A share of the batch for longer steps, their sizes alike, at multiples of themselves; the target's slope is 0."""
    diffusion, grid, params = problem("cosine")
    x0 = data().sample(jax.random.key(0), 4096)
    loss = lambda target: flow_maps.shortcut_loss(
        diffusion, params, jax.random.key(3), x0, target_params=target, finest=FINEST
    )
    (_, aux), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    i, j = (np.argmin(np.abs(grid - np.asarray(aux[name])[:, None]), axis=1) for name in ("t", "s"))
    size = j - i
    assert abs(np.sum(size > 1) - 1024) <= 1
    assert np.all(i % size == 0)
    for n, starts in ((1, 4), (2, 2), (4, 1)):
        count = np.bincount(i[size == n], minlength=4)[::n]
        expected = (3072 if n == 1 else 512) / starts
        assert len(count) == starts
        assert np.abs(count - expected).max() < 4.5 * np.sqrt(expected)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(slope))


@pytest.mark.parametrize("name", ["cosine", "edm", "rectified", "vp"])
def test_grids_are_even_on_the_line_and_nested(name):
    process = ALL_PROCESSES[name]()
    diffusion = dj.Diffusion(dj.Network(None, lambda: None), process, dj.X0Prediction(0.5))
    grid = line_grid(diffusion, 8)
    assert (grid[0], grid[-1]) == (1.0, 0.0)
    tau = np.asarray(process.sigma(grid) / (0.5 * process.alpha(grid) + process.sigma(grid)))
    np.testing.assert_allclose(tau, np.linspace(tau[0], tau[-1], 9), atol=1e-12)
    np.testing.assert_allclose(line_grid(diffusion, 4), grid[::2], atol=1e-14)


def test_it_is_one_function_whole_in_parts_and_with_labels():
    def apply(params, x, c_noise, cond=None, *, key=None):
        return params["w"] * x + cond[:, None] + c_noise[:, 1:]

    key, x0, label = jax.random.key(5), data().sample(jax.random.key(4), 8), jnp.arange(8.0)
    diffusion = dj.Diffusion(dj.Network(None, apply), dj.Cosine(), dj.VPrediction())
    params, target = {"w": jnp.full((), 0.4)}, {"w": jnp.full((), 0.3)}

    def loss(x0, cond, index):
        return flow_maps.shortcut_loss(
            diffusion, params, key, x0, cond, target_params=target, finest=2, share=0.5, index=index, total=8
        )

    value, aux = jax.jit(loss)(x0, label, jnp.arange(8))
    parts = jax.tree.map(lambda leaf: leaf.reshape(2, 4, *leaf.shape[1:]), (x0, label, jnp.arange(8)))
    each, aux_each = jax.pmap(loss, devices=jax.devices()[:2])(*parts)
    np.testing.assert_allclose(jnp.mean(each), value, rtol=1e-12)
    for name, whole in aux.items():
        np.testing.assert_allclose(aux_each[name].ravel(), whole, rtol=1e-10)
    assert np.abs(jax.jit(loss)(x0, label + 1, jnp.arange(8))[1]["per_sample"] - aux["per_sample"]).max() > 1e-3


def test_a_map_of_dyadic_steps_knows_no_others():
    grid = np.linspace(1.0, 0.0, 9)
    knows = processes.Dyadic(tuple(grid))
    for i in range(9):
        for j in range(i + 1, 9):
            n = j - i
            if n in (1, 2, 4, 8) and i % n == 0:
                processes.check_known(knows, grid[i], grid[j])
            else:
                with pytest.raises(ValueError, match="the dyadic pairs among the 8 steps of the grid"):
                    processes.check_known(knows, grid[i], grid[j])
    for t, s in ((0.5, 0.5), (0.25, 0.5), (1.0, 0.8755), (0.9995, 0.875)):
        with pytest.raises(ValueError, match="the dyadic pairs"):
            processes.check_known(knows, t, s)
    diffusion, xt = dj.Diffusion(dj.Network(None, lambda: None), dj.Cosine(), dj.VPrediction()), jnp.ones((1, 2))
    with pytest.raises(ValueError, match="is no denoiser"):
        dj.make_flow_map(diffusion, {}, knows=knows)(xt, 0.5)
    for wrong in (np.linspace(1.0, 0.0, 7), np.array([0.0, 1.0]), "any"):
        with pytest.raises(ValueError, match="knows: "):
            dj.make_flow_map(diffusion, {}, knows=processes.Dyadic(wrong))


def test_what_does_not_fit_is_refused():
    diffusion, _, params = problem("cosine")
    for words, more in (
        ("finest: a power of two", {"finest": 6}),
        ("finest: a power of two", {"finest": 1}),
        (r"share: must lie in \[0, 1\]", {"share": 1.5}),
        (r"share: must lie in \[0, 1\]", {"share": -0.1}),
    ):
        with pytest.raises(ValueError, match=words):
            flow_maps.shortcut_loss(
                diffusion, params, jax.random.key(0), jnp.ones((2, 2)), target_params=params, **more
            )
    eps = dj.Diffusion(diffusion.network, dj.Cosine(), dj.EpsPrediction())
    with pytest.raises(ValueError, match="diffusion: EpsPrediction says nothing of x0"):
        flow_maps.shortcut_loss(eps, params, jax.random.key(0), jnp.ones((2, 2)), target_params=params)
