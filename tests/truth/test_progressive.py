"""Progressive distillation: targets land where the teacher does, and perfect students are the first teacher's DDIM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PROCESSES, each_process

import diffjax as dj
from diffjax import flow_maps, losses, process as processes

STD = np.array([0.5, 1.7])
GRID = np.array([1.0, 0.7, 0.45, 0.0])


def data():
    return dj.Gaussian(jnp.array([0.3, -0.2]), jnp.asarray(STD**2))


def bent(xt, t):
    """A denoiser that is not linear."""
    return jnp.tanh(xt) / (1 + jnp.asarray(t).reshape(-1, *[1] * (xt.ndim - 1)))


def states(process, grid, n):
    """n states at each of the first K times of a grid, and their steps."""
    k = jnp.tile(jnp.arange(len(grid) - 1), n)
    x0, eps = jax.random.normal(jax.random.key(3), (2, k.size, 2))
    return dj.perturb(process, 2 * x0, eps, jnp.asarray(grid)[k]), k


def by_hand(process, teacher, xt, t, s, n):
    """Where n equal steps of DDIM, one after the other, arrive."""
    for j in range(n):
        u, v = t + j / n * (s - t), t + (j + 1) / n * (s - t)
        xt = processes.move(process, xt, u, v, teacher(xt, u))
    return xt


@pytest.mark.parametrize("name", each_process())
def test_one_step_with_the_target_is_the_teachers_n(name):
    process = ALL_PROCESSES[name]()
    xt, k = states(process, GRID, 3)
    t, s = jnp.asarray(GRID)[k], jnp.asarray(GRID)[k + 1]
    for n in (2, 4):
        target = flow_maps.progressive_target(process, bent, xt, k, grid=GRID, teacher_steps=n)
        landed, right = processes.move(process, xt, t, s, target), by_hand(process, bent, xt, t, s, n)
        np.testing.assert_allclose(landed, right, rtol=1e-12, atol=1e-12 * np.abs(right).max())
    assert np.max(np.abs(right - by_hand(process, bent, xt, t, s, 1))) > 1e-3  # several steps are not one


@pytest.mark.parametrize("name", ["cosine", "edm"])
def test_a_flow_map_is_moved_by_its_own_steps(name):
    process = ALL_PROCESSES[name]()
    xt, k = states(process, GRID, 2)
    F = dj.exact_flow_map(data(), process)
    t, s = jnp.asarray(GRID)[k], jnp.asarray(GRID)[k + 1]
    right = F(xt, t, s)
    for more in ({}, {"teacher_grid": np.array([1.0, 0.9, 0.7, 0.5, 0.45, 0.1, 0.0])}, {"teacher_steps": 1}):
        target = flow_maps.progressive_target(process, F, xt, k, grid=GRID, **more)
        np.testing.assert_allclose(target, right, rtol=1e-11, atol=1e-11)
    plain = flow_maps.progressive_target(process, lambda x, t, s: F(x, t, s), xt, jnp.full((), 1), grid=GRID)
    np.testing.assert_allclose(plain[1], right[1], rtol=1e-11)


def test_the_teachers_own_times_are_used():
    process, grid, fine = dj.Cosine(), np.array([1.0, 0.5, 0.0]), np.array([1.0, 0.9, 0.5, 0.2, 0.0])
    xt, k = states(process, grid, 1)
    target = flow_maps.progressive_target(process, bent, xt, k, grid=grid, teacher_grid=fine)
    landed = processes.move(process, xt, jnp.asarray(grid)[k], jnp.asarray(grid)[k + 1], target)
    for row in range(2):
        right = dj.sample(
            None, process, bent, xt[row : row + 1], fine[2 * row : 2 * row + 3], dj.DDIM(), final_denoise=False
        )
        np.testing.assert_allclose(landed[row : row + 1], right, rtol=1e-12)


def test_float32_is_enough_at_8192_steps():
    grid = np.linspace(1.0, 0.0, 8193)
    process = dj.Cosine()
    k = jnp.arange(0, 8192, 61)
    noise = jax.random.normal(jax.random.key(0), (2, k.size, 2), jnp.float32)
    xt = dj.perturb(process, noise[0], noise[1], jnp.asarray(grid, jnp.float32)[k])
    teacher = lambda x, t: jnp.tanh(x)  # the same in both precisions: what is measured is the target
    rough, fine = (
        flow_maps.progressive_target(process, teacher, x, k, grid=grid) for x in (xt, xt.astype(jnp.float64))
    )
    assert rough.dtype == jnp.float32
    assert np.abs(np.asarray(rough) - np.asarray(fine)).max() < 5e-7


# --- affine students of Gaussian data: no network ---


def affine(grid, process, parameterisation):
    """A network with a gain [K, 2] and a shift [K, 2] for each step, which it knows by c_noise."""
    clocks = parameterisation.noise_level(process, jnp.asarray(grid)[:-1])

    def apply(params, x, c_noise, cond=None, *, key=None):
        row = jnp.argmin(jnp.abs(clocks - c_noise[:, None]), axis=1)
        return params["gain"][row] * x + params["shift"][row]

    return dj.Diffusion(dj.Network(None, apply), process, parameterisation)


def fitted(diffusion, teacher, grid, **more):
    """The affine student's parameters by least squares on progressive targets."""
    xt, k = states(diffusion.process, grid, 6)
    target = flow_maps.progressive_target(diffusion.process, teacher, xt, k, grid=grid, **more)
    scale = diffusion.parameterisation.input_scale(diffusion.process, jnp.asarray(grid)[k])
    gains, shifts = np.zeros((2, len(grid) - 1, 2))
    for row in range(len(grid) - 1):
        for feature in range(2):
            x = np.asarray(scale[:, None] * xt)[k == row, feature]
            fit = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), np.asarray(target)[k == row, feature], rcond=None)
            (gains[row, feature], shifts[row, feature]), residual = fit[:2]
            assert residual < 1e-20  # the target is affine
    return {"gain": jnp.asarray(gains), "shift": jnp.asarray(shifts)}


@pytest.mark.parametrize("name", ["cosine", "edm"])
def test_students_of_every_stage_are_the_first_teachers_ddim(name):
    process = ALL_PROCESSES[name]()
    xT = process.sigma(1.0) * jax.random.normal(jax.random.key(1), (5, 2))
    teacher, grid = dj.exact_denoiser(data(), process), np.linspace(1.0, 0.0, 9)
    right = dj.sample(None, process, teacher, xT, grid, dj.DDIM(), final_denoise=False)
    for _ in range(3):
        grid = flow_maps.halve_grid(grid)
        diffusion = affine(grid, process, dj.X0Prediction())
        params = fitted(diffusion, teacher, grid)
        teacher = dj.make_flow_map(diffusion, params, knows=grid)
        np.testing.assert_allclose(dj.sample(None, process, teacher, xT, grid, dj.Jump()), right, rtol=1e-11)
    assert len(grid) == 2
    std = (right[0] - right[1]) / (xT[0] - xT[1]) * process.sigma(1.0)
    if name == "cosine":
        np.testing.assert_allclose(std, [0.411, 1.423], atol=5e-4)


def test_one_step_of_a_thousand_steps_teacher():
    process, grid = dj.Cosine(), np.array([1.0, 0.0])
    params = fitted(
        affine(grid, process, dj.X0Prediction()), dj.exact_denoiser(data(), process), grid, teacher_steps=1024
    )
    np.testing.assert_allclose(params["gain"][0], [0.4992, 1.6977], atol=5e-5)


def test_the_loss_is_least_at_the_perfect_student():
    """0, with no slope, and more in any direction, by its weight: a sum over steps, features and a batch."""
    process, grid, key = dj.Cosine(), np.linspace(1.0, 0.0, 5), jax.random.key(2)
    diffusion, teacher = affine(grid, process, dj.X0Prediction()), dj.exact_denoiser(data(), process)
    params = fitted(diffusion, teacher, grid)
    x0 = data().sample(key, 64)
    loss = lambda params, **more: flow_maps.progressive_loss(
        diffusion, params, key, x0, teacher=teacher, grid=grid, **more
    )
    value, slope = jax.jit(jax.value_and_grad(lambda params: loss(params)[0]))(params)
    assert value < 1e-24
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(slope)) < 1e-11

    away = {"gain": params["gain"], "shift": params["shift"] + jnp.array([0.1, 0.3])}
    snr = lambda t: np.exp(np.asarray(process.logsnr(t)))
    for weighting, on_x0 in (
        (flow_maps.truncated_snr, lambda snr: np.maximum(snr, 1)),
        (losses.on_v, lambda snr: snr + 1),
        (losses.on_x0, np.ones_like),
    ):
        value, aux = loss(away, weighting=weighting)
        weight = on_x0(np.where(aux["t"] == 1, 0.0, snr(aux["t"])))
        np.testing.assert_allclose(aux["per_sample"], 0.05 * weight, rtol=1e-6)  # the weight at t = 1 is a limit
        np.testing.assert_allclose(value, np.mean(aux["per_sample"]), rtol=1e-12)
    np.testing.assert_array_equal(np.sort(aux["t"])[::-1], np.repeat(grid[:-1], 16))  # evenly over the grid


def test_the_target_is_a_constant_of_the_loss():
    """Also where the teacher shares the student's parameters, and where the process is learned."""
    grid, key, x0 = np.linspace(1.0, 0.0, 3), jax.random.key(2), jnp.ones((4, 2))
    diffusion = affine(grid, dj.Cosine(), dj.X0Prediction())
    params = {"gain": jnp.full((2, 2), 0.3), "shift": jnp.ones((2, 2))}

    def loss(params, frozen):
        teacher = dj.make_denoiser(diffusion, frozen)
        return flow_maps.progressive_loss(diffusion, params, key, x0, teacher=teacher, grid=grid)[0]

    both, alone = jax.jit(lambda p: (jax.grad(lambda p: loss(p, p))(p), jax.grad(loss)(p, p)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), both, alone)


# --- as losses are used ---


def labelled(params, x, c_noise, cond=None, *, key=None):
    """A network with a condition."""
    return params["w"] * x + cond[:, None]


def test_it_is_one_function_whole_in_parts_and_jitted():
    key, x0, label = jax.random.key(5), data().sample(jax.random.key(4), 8), jnp.arange(8.0)
    diffusion = dj.Diffusion(dj.Network(None, labelled), dj.Cosine(), dj.VPrediction())
    params, grid = {"w": jnp.full((), 0.4)}, np.linspace(1.0, 0.0, 5)

    def loss(x0, cond, index):
        teacher = dj.make_denoiser(diffusion, params, cond)
        return flow_maps.progressive_loss(
            diffusion, params, key, x0, cond, teacher=teacher, grid=grid, index=index, total=8
        )

    value, aux = jax.jit(loss)(x0, label, jnp.arange(8))
    parts = jax.tree.map(lambda leaf: leaf.reshape(2, 4, *leaf.shape[1:]), (x0, label, jnp.arange(8)))
    each, aux_each = jax.pmap(loss, devices=jax.devices()[:2])(*parts)
    np.testing.assert_allclose(jnp.mean(each), value, rtol=1e-12)
    np.testing.assert_array_equal(aux_each["t"].ravel(), aux["t"])
    np.testing.assert_allclose(aux_each["per_sample"].ravel(), aux["per_sample"], rtol=1e-10)
    assert np.abs(jax.jit(loss)(x0, label + 1, jnp.arange(8))[1]["per_sample"] - aux["per_sample"]).max() > 1e-3


def test_guided_teachers_are_teachers():
    process, grid = dj.Cosine(), np.array([1.0, 0.5, 0.0])
    good, bad = dj.exact_denoiser(data(), process), dj.exact_denoiser(dj.Gaussian(jnp.zeros(2), 2.0), process)
    xt, k = states(process, grid, 1)
    guided = dj.guidance.extrapolate(good, bad, 3.0)
    target = flow_maps.progressive_target(process, guided, xt, k, grid=grid)
    t, s = jnp.asarray(grid)[k], jnp.asarray(grid)[k + 1]
    landed = processes.move(process, xt, t, s, target)
    np.testing.assert_allclose(landed, by_hand(process, guided, xt, t, s, 2), rtol=1e-11)


def test_what_does_not_fit_is_refused():
    process, grid, x0 = dj.Cosine(), np.linspace(1.0, 0.0, 5), jnp.ones((2, 2))
    k = jnp.array([0, 1])

    def target(teacher=bent, k=k, grid=grid, **more):
        return flow_maps.progressive_target(process, teacher, x0, k, grid=grid, **more)

    def refused(words, call, *args, **kwargs):
        with pytest.raises(ValueError, match=words):
            call(*args, **kwargs)

    for wrong in ([0.0, 1.0], [1.0, 0.1], [1.1, 0.0], [1.0], [1.0, 0.5, 0.5, 0.0]):
        refused("grid: two or more times are needed that descend from at most 1 to 0", target, grid=np.array(wrong))
    refused("grid: the times must be known before tracing", jax.jit(lambda g: target(grid=g)), jnp.asarray(grid))
    for wrong in (np.linspace(1.0, 0.0, 8), np.linspace(1.0, 0.0, 10), np.linspace(1.0, 0.0, 9) ** 2, grid):
        refused("teacher_grid: it must contain the student's grid", target, teacher_grid=wrong)
    refused("teacher_grid: it must contain", target, teacher_grid=np.linspace(1.0, 0.0, 9), teacher_steps=4)
    refused("teacher_grid: two or more times", target, teacher_grid=np.linspace(1.0, 0.5, 9))
    refused("teacher_steps: at least 1", target, teacher_steps=0)
    refused("k: whole numbers", target, k=jnp.array([0.0, 1.0]))
    refused("k: whole numbers", target, k=jnp.array([0, 1, 2]))
    refused("teacher: a denoiser .* got DDIM", target, dj.DDIM(eta=1.0))
    refused("teacher: it must be deterministic, .* takes 'key'", target, lambda x, t, key: x)
    refused("teacher: must answer shape", target, lambda x, t: x[:, :1])

    network = dj.Network(None, labelled)
    student = dj.Diffusion(network, process, dj.VPrediction())
    F = dj.make_flow_map(student, {}, knows=np.linspace(1.0, 0.0, 5))
    refused("teacher_grid: it must contain the student's grid", target, F)  # its own four steps
    refused("trained on the 4 steps of the grid", target, F, teacher_grid=np.linspace(1.0, 0.0, 9))
    refused("trained on steps to s = 0", target, dj.make_flow_map(student, {}, knows="zero"))

    for steps in (1, 5):
        refused(f"grid: an even number of steps .* got {steps}", flow_maps.halve_grid, np.linspace(1.0, 0.0, steps + 1))
    for prediction in (dj.EpsPrediction(), dj.parameterisation.ScorePrediction()):
        refused(
            f"diffusion: {type(prediction).__name__} says nothing of x0",
            lambda prediction=prediction: flow_maps.progressive_loss(
                dj.Diffusion(network, process, prediction), {}, jax.random.key(0), x0, teacher=bent, grid=grid
            ),
        )
