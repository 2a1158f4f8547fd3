"""The engines: diffrax with our steppers, a step size for each sample, devices, chunks; what they refuse."""

import itertools
import re

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from registry import gaussian

import diffjax as dj
from diffjax import samplers
from diffjax._arrays import nan_unless
from diffjax.samplers._batch import over_devices, split_batch

KEY = jax.random.key
SLOW = pytest.mark.slow
AUTO = (AxisType.Auto,)


def mesh_of(devices):
    return jax.make_mesh((devices,), ("data",), axis_types=AUTO, devices=jax.devices()[:devices])


def tight(tolerance):
    """A step-size controller whose tolerance is an array, so that another one compiles nothing."""
    tolerance = jnp.asarray(tolerance)
    return diffrax.PIDController(rtol=tolerance, atol=tolerance)


class KnownData(eqx.Module):
    """A denoiser that knows x0: every deterministic method is then exact."""

    x0: jax.Array

    def __call__(self, xt, t):
        return self.x0


class Layer(eqx.Module):
    """A denoiser with a matrix of parameters."""

    matrix: jax.Array

    def __call__(self, xt, t):
        return jnp.tanh(xt @ self.matrix) * jnp.cos(t) - 0.1 * xt


def by_network(cond, gain=0.8):
    """A NetworkDenoiser whose answer depends on its condition, one row a sample; and the same written out."""
    network = dj.Network(
        lambda key, x, c_noise, cond=None: {},
        lambda params, x, c_noise, cond=None, *, key=None: params * x * jnp.tanh(cond[:, :1]) + cond[:, 1:],
    )
    return dj.make_denoiser(dj.Diffusion(network, dj.Cosine(), dj.X0Prediction()), jnp.asarray(gain), cond)


# --- dense output ---


@pytest.mark.parametrize("make", [pytest.param(dj.DDIM, marks=SLOW), pytest.param(dj.Heun, marks=SLOW), dj.DPMpp2M])
@pytest.mark.slow
def test_between_steps_the_state_is_alpha_d_plus_sigma_e(make):
    """With x0 known every path is alpha x0 + sigma eps: dense output meets it anywhere, from alpha = 0 to sigma = 0."""
    process, stepper = dj.Rectified(), make()
    x0, eps = jax.random.normal(KEY(0), (2, 3, 2))
    ts, save = np.array([1.0, 0.7, 0.6, 0.2, 0.0]), np.array([1.0, 0.95, 0.6, 0.45, 0.1, 0.0])
    terms = dj.probability_flow(process, KnownData(x0))
    truth = np.stack([(1 - t) * x0 + t * eps for t in save])
    solution = dj.integrate(terms, eps, ts, solver=dj.samplers.as_diffrax_solver(stepper), save=save)
    np.testing.assert_allclose(solution.saved, truth, atol=1e-14)
    np.testing.assert_allclose(solution.x0, x0, atol=1e-14)
    dense = diffrax.diffeqsolve(
        terms,
        dj.samplers.as_diffrax_solver(stepper, process=process, ts=ts),
        t0=-1.0,
        t1=0.0,
        dt0=None,
        y0=eps,
        stepsize_controller=diffrax.StepTo(-ts),
        saveat=diffrax.SaveAt(dense=True),
        max_steps=4,
    )
    for t, expected in zip(save, truth, strict=True):
        np.testing.assert_allclose(dense.evaluate(-t), expected, atol=1e-14)
    np.testing.assert_allclose(dense.evaluate(-0.5, -0.3), 0.2 * (x0 - eps), atol=1e-14)


@SLOW
def test_dense_output_is_better_than_a_line():
    """EDM's Heun at 24 steps, halfway between: nearer to the exact flow than the chord by five times."""
    process, data = dj.EDM(), gaussian()
    ts = np.asarray(dj.uniform_grid(process, 24))
    xt = dj.prior(KEY(0), process, (16, 2))
    middle = 0.5 * (ts[1:] + ts[:-1])
    solver = dj.samplers.as_diffrax_solver(dj.Heun())
    flow = dj.probability_flow(process, dj.exact_denoiser(data, process))
    states = dj.integrate(flow, xt, ts, solver=solver, save=np.sort(np.concatenate([ts, middle]))[::-1]).saved
    chord = 0.5 * (states[:-2:2] + states[2::2])
    truth = jnp.stack([dj.exact_flow_map(data, process).move(xt, ts[0], t) for t in middle])
    error, linear = (float(jnp.sqrt(jnp.mean((x - truth) ** 2))) for x in (states[1::2], chord))
    print("halfway: ours", error, "a line", linear)
    assert error < linear / 5


@SLOW
def test_a_traced_grid_and_schedule():
    """Inside jit, where weights cannot be computed on the host, integrate still takes the steps of sample."""
    xt, ts = jax.random.normal(KEY(0), (2, 3)), np.linspace(0.9, 0.1, 5)
    layer = Layer(jnp.eye(3))

    @jax.jit
    def solve(beta, ts):
        flow = dj.probability_flow(dj.VariancePreserving(0.1, beta), layer)
        return dj.integrate(flow, xt, ts, solver=dj.samplers.as_diffrax_solver(dj.DPMpp2M()), save=[0.5])

    x0, saved = dj.sample(KEY(0), dj.VariancePreserving(), layer, xt, ts, dj.DPMpp2M(), final_denoise=False, save=[2])
    solution = solve(jnp.asarray(20.0), jnp.asarray(ts))
    np.testing.assert_allclose(solution.x0, x0, rtol=1e-9)
    np.testing.assert_allclose(solution.saved, saved, rtol=1e-9)


# --- step-size control ---


@pytest.mark.parametrize("make", [dj.Heun, pytest.param(lambda: samplers.DPMSolver(order=3), marks=SLOW)])
def test_an_embedded_stepper_meets_its_tolerance(make):
    """The error to the exact flow falls with rtol at every step of it, and costs more."""
    process, data = dj.Cosine(), gaussian()
    flow = dj.probability_flow(process, dj.exact_denoiser(data, process))
    xt, ts = dj.prior(KEY(0), process, (16, 2)), np.array([0.98, 0.02])
    truth = dj.exact_flow_map(data, process).move(xt, *ts)
    solver, errors, costs = dj.samplers.as_diffrax_solver(make()), [], []
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5):
        solution = dj.integrate(flow, xt, ts, solver=solver, controller=tight(tolerance))
        assert solution.ok
        errors.append(float(jnp.sqrt(jnp.mean((solution.x0 - truth) ** 2))))
        costs.append(int(solution.nfe))
    print("errors", errors, "nfe", costs)
    assert all(late < 0.4 * early for early, late in itertools.pairwise(errors))
    assert sorted(set(costs)) == costs
    assert errors[-1] < 2e-4


@SLOW
def test_step_doubling_controls_any_one_step_method():
    process, data = dj.Cosine(), gaussian()
    flow = dj.probability_flow(process, dj.exact_denoiser(data, process))
    xt, ts = dj.prior(KEY(0), process, (4, 2)), np.array([0.98, 0.02])
    solver = diffrax.HalfSolver(dj.samplers.as_diffrax_solver(dj.DDIM()))
    solution = dj.integrate(flow, xt, ts, solver=solver, controller=tight(1e-4))
    np.testing.assert_allclose(solution.x0, dj.exact_flow_map(data, process).move(xt, *ts), atol=2e-2)


# --- what a call costs ---


@pytest.mark.parametrize("engine", ["sample", "integrate", "noisy"])
@pytest.mark.slow
def test_memory_does_not_grow_with_steps(engine):
    """Temporary memory of 50 and 200 steps: equal but for a few numbers a step, less than one state in all."""
    process, xt = dj.VariancePreserving(), jnp.zeros((64, 32))
    flow = lambda matrix: dj.probability_flow(process, Layer(matrix))
    run = {
        "sample": lambda matrix, ts: dj.sample(KEY(0), process, Layer(matrix), xt, ts, dj.DPMpp2M()),
        "integrate": lambda matrix, ts: dj.integrate(flow(matrix), xt, ts, solver=diffrax.Heun()).x0,
        "noisy": lambda matrix, ts: dj.sample(KEY(0), process, Layer(matrix), xt, ts, dj.DDIM(eta=1.0)),
    }[engine]

    def temporary(n):
        compiled = jax.jit(run).lower(jnp.zeros((32, 32)), jnp.linspace(0.9, 0.1, n + 1)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporary(50), temporary(200)
    print("bytes at 50 steps", short, "at 200", long, "a state", xt.nbytes)
    assert long - short < xt.nbytes  # one state a step would be 150 of them


def test_remembered_weights_follow_values():
    """A grid changed in place, and another process of the same class: never the weights of the values before."""
    xt, grid = jnp.ones((2, 3)), np.linspace(0.9, 0.1, 6)
    step = dj.samplers.as_diffrax_solver(dj.DDIM())

    def both(beta_max):
        process = dj.VariancePreserving(0.1, beta_max)
        denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(3), 0.25), process)
        x0 = dj.integrate(dj.probability_flow(process, denoiser), xt, grid, solver=step).x0
        np.testing.assert_allclose(x0, dj.sample(KEY(0), process, denoiser, xt, grid, dj.DDIM(), final_denoise=False))
        alpha, sigma = (np.asarray(f(jnp.asarray(grid))) for f in (process.alpha, process.sigma))
        x = np.ones((2, 3))
        for k in range(5):
            x0_hat = alpha[k] * 0.25 / (alpha[k] ** 2 * 0.25 + sigma[k] ** 2) * x
            x = alpha[k + 1] * x0_hat + sigma[k + 1] / sigma[k] * (x - alpha[k] * x0_hat)
        np.testing.assert_allclose(x0, x, rtol=1e-10)
        return x0

    first = both(20.0)
    assert not np.allclose(both(10.0), first)
    grid[2] -= 0.05
    assert not np.allclose(both(20.0), first)


# --- gradients ---


@SLOW
@pytest.mark.parametrize("make", [dj.DPMpp2M, dj.Heun])
def test_gradient_of_fifty_steps_in_constant_memory(make):
    """The default adjoint: the gradient of the direct one, and memory that 200 steps share with 50."""
    process, stepper = dj.VariancePreserving(), make()
    matrix = jax.random.normal(KEY(0), (32, 32)) / 6
    xt = jax.random.normal(KEY(1), (64, 32))

    def direct(matrix, ts):
        return jnp.mean(dj.sample(KEY(0), process, Layer(matrix), xt, ts, stepper, final_denoise=False) ** 2)

    def checkpointed(matrix, ts):
        flow = dj.probability_flow(process, Layer(matrix))
        return jnp.mean(dj.integrate(flow, xt, ts, solver=dj.samplers.as_diffrax_solver(stepper)).x0 ** 2)

    def compiled(loss, n):
        ts = np.linspace(0.9, 0.1, n + 1)
        return jax.jit(lambda matrix: jax.grad(loss)(matrix, ts)).lower(matrix).compile()

    memory = lambda run: run.memory_analysis().temp_size_in_bytes
    ours, theirs = compiled(checkpointed, 50), compiled(direct, 50)
    np.testing.assert_allclose(ours(matrix), theirs(matrix), rtol=1e-9, atol=1e-14)
    print("bytes at 50 steps", memory(ours), "direct", memory(theirs))
    assert memory(compiled(checkpointed, 200)) < 1.05 * memory(ours)
    assert memory(ours) < 0.5 * memory(theirs)


# --- a step size for each sample ---


@SLOW
def test_each_sample_takes_its_own_steps():
    """Exact flow within tolerance; a sample with other mates: the same evaluations and the same answer."""
    process, data = dj.Cosine(), gaussian()
    flow = dj.probability_flow(process, dj.exact_denoiser(data, process))
    xt, ts = dj.prior(KEY(0), process, (6, 2)).at[1].mul(30.0), np.array([0.98, 0.02])
    solve = lambda xt: samplers.integrate_each(flow, xt, ts, solver=diffrax.Bosh3(), controller=tight(1e-6), save=[0.5])
    solution, mates = solve(xt), jnp.array([1, 0, 0, 0, 0, 0])
    assert np.all(solution.ok)
    assert len(set(np.asarray(solution.nfe))) > 1
    np.testing.assert_allclose(solution.x0, dj.exact_flow_map(data, process).move(xt, *ts), atol=1e-4)
    np.testing.assert_allclose(solution.saved[0], dj.exact_flow_map(data, process).move(xt, ts[0], 0.5), atol=1e-4)
    others = solve(xt[mates])
    np.testing.assert_array_equal(others.nfe, solution.nfe[mates])
    np.testing.assert_allclose(others.x0, solution.x0[mates], rtol=1e-10)


def test_each_sample_has_its_own_condition():
    """With a guided network of one condition and one scale a sample: what a sample gets alone, it gets among others."""
    cond, scale = jax.random.normal(KEY(1), (4, 3)), jnp.linspace(1.5, 3.0, 4)
    xt, ts = dj.prior(KEY(0), dj.Cosine(), (4, 2)), np.array([0.9, 0.3])

    @jax.jit
    def solve(cond, scale, xt):
        guided = dj.classifier_free(by_network(cond), jnp.zeros(3), scale)
        flow = dj.probability_flow(dj.Cosine(), guided)
        return samplers.integrate_each(
            flow, xt, ts, solver=dj.samplers.as_diffrax_solver(dj.Heun()), controller=tight(1e-3)
        )

    together = solve(cond, scale, xt)
    mates = jnp.array([3, 3, 3, 3])
    alone = solve(cond[mates], scale[mates], xt[mates])
    assert np.all(together.ok)
    np.testing.assert_allclose(alone.x0, jnp.broadcast_to(together.x0[3], (4, 2)), rtol=1e-10)
    np.testing.assert_array_equal(alone.nfe, together.nfe[mates])
    assert not np.allclose(together.x0[:3], together.x0[3], atol=1e-3)


@SLOW
def test_each_sample_has_its_own_path():
    """Adaptive SDE solves by the tree: a sample alone follows the path that it follows among others."""
    xt, ts = dj.prior(KEY(0), dj.Cosine(), (5, 2)), np.array([0.9, 0.3])
    exact = dj.exact_denoiser(gaussian(), dj.Cosine())
    path = {"levy_area": diffrax.SpaceTimeLevyArea, "tolerance": 1e-3}
    controller = diffrax.PIDController(rtol=1e-2, atol=1e-2, dtmin=1e-3)

    def solve(index):
        terms = dj.reverse_sde(dj.Cosine(), exact, dj.per_sample_path(KEY(2), index, (2,), **path))
        return samplers.integrate_each(terms, xt[index], ts, solver=diffrax.ShARK(), controller=controller)

    together, alone = solve(jnp.arange(5)), solve(jnp.array([3]))
    assert np.all(together.ok)
    # Another path is another sample; rounding, which the choice of steps amplifies, was 5e-7 on a busy machine.
    np.testing.assert_allclose(alone.x0[0], together.x0[3], rtol=1e-5)
    assert int(alone.nfe[0]) == int(together.nfe[3])


def test_what_has_the_batch_axis():
    """Conditions, keys of paths and a scale of each sample do; parameters, times and the process do not."""
    denoiser = dj.classifier_free(by_network(jnp.ones((4, 3))), jnp.zeros(3), jnp.full(4, 2.0))
    terms = dj.reverse_sde(dj.Cosine(), denoiser, dj.per_sample_path(KEY(0), 4, (2,)))
    rows, rest = split_batch((terms, {"plain": jnp.ones(4)}))
    assert sorted(leaf.shape for leaf in jax.tree.leaves(rows)) == [(4,), (4,), (4, 3)]
    assert all(leaf.shape in ((), (3,), (4,)) for leaf in jax.tree.leaves(eqx.filter(rest, eqx.is_array)))
    assert jax.tree.structure(eqx.combine(rows, rest)) == jax.tree.structure((terms, {"plain": jnp.ones(4)}))


# --- over devices ---


COLLECTIVES = re.compile(r"= \S+ (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)")


def collectives_in_loops(text):
    """The collectives of compiled HLO that run inside a while loop, its condition or what these call."""
    bodies, name = {}, None
    for line in text.splitlines():
        if line and not line[0].isspace() and "{" in line:
            name = line.removeprefix("ENTRY").split("(")[0].strip().lstrip("%")
            bodies[name] = []
        elif name:
            bodies[name].append(line)
    called = lambda lines, words: re.findall(rf"(?:{words})=\{{?%?([\w.\-]+)", "\n".join(lines))
    todo = [loop for lines in bodies.values() for loop in called(lines, "body|condition")]
    assert todo, "no loop found"
    seen = set()
    while todo:
        if (loop := todo.pop()) not in seen:
            seen.add(loop)
            todo += called(bodies[loop], "body|condition|calls|to_apply|branch_computations|true_computation")
    return [match.group(1) for loop in seen for line in bodies[loop] if (match := COLLECTIVES.search(line))]


def solve_over(mesh, xt):
    process = dj.Cosine()
    flow = dj.probability_flow(process, dj.exact_denoiser(gaussian(), process))
    ts, controller = np.array([0.98, 0.02]), tight(1e-5)
    return samplers.integrate_each(flow, xt, ts, solver=diffrax.Heun(), controller=controller, mesh=mesh)


@pytest.mark.slow
def test_eight_devices_do_not_wait_for_each_other():
    """Adaptive, each sample by itself: no collective in the compiled loop, one device's answer."""
    xt = dj.prior(KEY(0), dj.Cosine(), (16, 2))
    eight = jax.jit(lambda xt: solve_over(mesh_of(8), xt)).lower(xt).compile()
    assert collectives_in_loops(eight.as_text()) == []
    one, eight = solve_over(None, xt), eight(xt)
    np.testing.assert_allclose(eight.x0, one.x0, atol=1e-5)
    np.testing.assert_array_equal(eight.nfe, one.nfe)


@SLOW
def test_left_to_the_compiler_devices_do_wait():
    """The same solve of a batch placed on eight devices has all-reduces in its loop: the search above would see one."""
    xt = dj.prior(KEY(0), dj.Cosine(), (16, 2))
    placed = jax.device_put(xt, NamedSharding(mesh_of(8), PartitionSpec("data")))
    compiled = jax.jit(lambda xt: solve_over(None, xt)).lower(placed).compile()
    assert "all-reduce" in collectives_in_loops(compiled.as_text())


@SLOW
def test_fixed_steps_over_devices():
    """A guided network with conditions, in the SDE: one device's answer to rounding."""
    cond, ts = jax.random.normal(KEY(1), (8, 3)), np.linspace(0.9, 0.1, 6)
    xt = dj.prior(KEY(0), dj.Cosine(), (8, 2))
    denoiser = dj.classifier_free(by_network(cond), jnp.zeros(3), 2.0)
    terms = dj.reverse_sde(dj.Cosine(), denoiser, dj.per_sample_path(KEY(2), 8, (2,)))
    one, eight = (dj.integrate(terms, xt, ts, solver=diffrax.Euler(), mesh=m) for m in (None, mesh_of(8)))
    np.testing.assert_allclose(eight.x0, one.x0, rtol=1e-12)
    assert int(eight.nfe) == 5


@SLOW
def test_noise_over_devices_is_the_same_bit_for_bit():
    """Prior and path of sample i on eight devices are those of one."""
    path = dj.per_sample_path(KEY(0), 8, (3,), levy_area=diffrax.SpaceTimeLevyArea)
    index = jnp.arange(8)

    @eqx.filter_jit
    def noise(path, mesh):
        def draw(rows, rest):
            path, index = eqx.combine(rows[0], rest), rows[1]
            increment = path.evaluate(-0.9, -0.4, use_levy=True)
            return increment.W, increment.H, dj.prior(KEY(1), dj.Cosine(), (index.shape[0], 3), index=index)

        rows, rest = split_batch(path)
        return over_devices(draw, mesh, (rows, index), rest, 0)

    for one, eight in zip(noise(path, None), noise(path, mesh_of(8)), strict=True):
        np.testing.assert_array_equal(one, eight)


@SLOW
def test_gradient_over_devices():
    """The devices' gradients of what they share are added, once."""
    xt, ts = jax.random.normal(KEY(1), (8, 4)), np.linspace(0.9, 0.1, 5)
    matrix = jax.random.normal(KEY(0), (4, 4))

    def loss(matrix, mesh):
        terms = dj.probability_flow(dj.Cosine(), Layer(matrix))
        adjoint = None if mesh is None else diffrax.DirectAdjoint()
        solver = dj.samplers.as_diffrax_solver(dj.DDIM())
        return jnp.sum(dj.integrate(terms, xt, ts, solver=solver, adjoint=adjoint, mesh=mesh).x0 ** 2)

    np.testing.assert_allclose(jax.grad(loss)(matrix, mesh_of(8)), jax.grad(loss)(matrix, None), rtol=1e-10)


# --- any number of samples ---


@pytest.mark.parametrize("cases", [((11, 8),), pytest.param(((16, None), (3, None), (5, 2)), marks=SLOW)])
def test_sample_n_is_the_same_for_any_chunk_and_devices(cases):
    """11 guided samples of a stochastic method: rows of one `sample`, though 11 divides by none of them."""
    process, n = dj.Cosine(), 11
    cond, scale, null = jax.random.normal(KEY(1), (n, 3)), jnp.linspace(1.0, 3.0, n), jnp.zeros(3)
    denoiser = dj.classifier_free(by_network(cond), null, scale)
    ts, stepper = dj.logsnr_grid(process, 6), dj.DDIM(eta=1.0)
    prior_key, key = jax.random.split(KEY(7))
    truth = dj.sample(key, process, denoiser, dj.prior(prior_key, process, (n, 2)), ts, stepper)
    for chunk, devices in cases:
        mesh = None if devices is None else mesh_of(devices)
        x0 = dj.sample_n(KEY(7), process, denoiser, (2,), n, ts=ts, stepper=stepper, chunk=chunk, mesh=mesh)
        assert x0.shape == (n, 2)
        np.testing.assert_allclose(x0, truth, rtol=1e-9, atol=1e-12)


def test_sample_n_takes_the_mesh_of_its_docstring():
    """JAX makes its axes explicit; within `jax.set_mesh` they must be automatic, and the error says how."""
    shown = re.search(r"`(jax\.make_mesh\(.*?\))`", dj.sample_n.__doc__)
    run = lambda mesh: dj.sample_n(
        KEY(7), dj.Cosine(), lambda x, t: 0.5 * x, (2,), 9, ts=[0.9, 0.5, 0.1], stepper=dj.DDIM(eta=1.0), mesh=mesh
    )
    truth, explicit, automatic = run(None), eval(shown[1], {"jax": jax}), mesh_of(8)
    assert [mesh.axis_types[0].name for mesh in (explicit, automatic)] == ["Explicit", "Auto"]
    for mesh in (explicit, automatic):
        np.testing.assert_allclose(run(mesh), truth, rtol=1e-9)
        with jax.set_mesh(automatic):
            np.testing.assert_allclose(run(mesh), truth, rtol=1e-9)
        with (
            jax.set_mesh(explicit),
            pytest.raises(ValueError, match=r"mesh: `jax.set_mesh` .* outside .* jax.make_mesh\(\(8,\), \('data',\)"),
        ):
            run(mesh)


def test_sample_n_compiles_once_for_all_chunks():
    calls = []

    def denoiser(xt, t):
        calls.append(1)
        return 0.3 * xt

    ts = np.linspace(0.9, 0.1, 4)
    x0 = dj.sample_n(KEY(0), dj.Cosine(), denoiser, (2, 2, 1), 10, ts=ts, stepper=dj.DDIM(), chunk=4)
    assert x0.shape == (10, 2, 2, 1)
    first = len(calls)
    dj.sample_n(KEY(1), dj.Cosine(), denoiser, (2, 2, 1), 7, ts=ts**2, stepper=dj.DDIM(), chunk=4)
    assert len(calls) == first


# --- what is refused ---


def flow_of(process):
    return dj.probability_flow(process, dj.exact_denoiser(gaussian(), process))


def sde_of(process, **path):
    return dj.reverse_sde(process, dj.exact_denoiser(gaussian(), process), dj.per_sample_path(KEY(0), 2, (2,), **path))


def test_steppers_that_cannot_choose_their_steps():
    xt, ts = jnp.zeros((2, 2)), np.array([0.9, 0.5, 0.1])
    flow, process = flow_of(dj.Cosine()), dj.Cosine()
    refused = lambda message: pytest.raises(ValueError, match=message)
    solve = lambda stepper, terms=flow: dj.integrate(
        terms, xt, ts, solver=dj.samplers.as_diffrax_solver(stepper), controller=tight(1e-3)
    )
    with refused(r"controller: DDIM does not estimate its error; use .* Heun\(\), or diffrax.HalfSolver"):
        solve(dj.DDIM())
    with refused("controller: DPMpp2M looks back on earlier steps, so its steps are fixed"):
        solve(dj.DPMpp2M())
    with refused("controller: DDIM draws noise anew"):
        solve(dj.DDIM(eta=1.0), sde_of(process, tolerance=1e-3))
    with refused("terms: DDIM is stochastic: `reverse_sde` is needed"):
        dj.integrate(flow, xt, ts, solver=dj.samplers.as_diffrax_solver(dj.DDIM(eta=1.0)))
    with refused("terms: DDIM needs those of `probability_flow`, got MultiTerm"):
        dj.integrate(sde_of(process), xt, ts, solver=dj.samplers.as_diffrax_solver(dj.DDIM()))
    with refused("DPMpp2M looks back on earlier steps, so it must know its grid"):
        diffrax.diffeqsolve(flow, dj.samplers.as_diffrax_solver(dj.DPMpp2M()), t0=-0.9, t1=-0.1, dt0=0.1, y0=xt)
    with refused("process: binding to a grid needs process and ts"):
        dj.samplers.as_diffrax_solver(dj.DPMpp2M(), ts=ts)


@pytest.mark.parametrize(
    ("terms", "ts", "solver", "message"),
    [
        (
            lambda: flow_of(dj.VariancePreserving()),
            [1.0, 0.0],
            diffrax.Heun,
            r"VariancePreserving .* end t = 0, .* Heun",
        ),
        (lambda: flow_of(dj.Rectified()), [1.0, 0.0], diffrax.Tsit5, r"Rectified .* end t = 0, .* = \(4.5\de-05, 1\)"),
        (lambda: sde_of(dj.Cosine()), [1.0, 0.1], diffrax.Euler, "Cosine is singular at its end t = 1, where Euler"),
        (lambda: sde_of(dj.Rectified()), [1.0, 0.1], diffrax.Heun, "Rectified is singular at its end t = 1"),
    ],
)
def test_singular_ends(terms, ts, solver, message):
    with pytest.raises(ValueError, match=message):
        dj.integrate(terms(), jnp.zeros((2, 2)), np.array(ts), solver=solver())


@SLOW
def test_regular_ends_pass():
    """Euler never looks at its last time, and the velocity at alpha = 0 is regular where g is not."""
    process, x0 = dj.Rectified(), jnp.ones((2, 2))
    eps = dj.prior(KEY(0), process, (2, 2))
    terms = dj.probability_flow(process, KnownData(x0))
    solution = dj.integrate(terms, eps, np.linspace(1, 0, 5), solver=diffrax.Euler())
    np.testing.assert_allclose(solution.x0, x0, atol=1e-14)


def test_levy_areas_that_a_path_lacks():
    xt, ts = jnp.zeros((2, 2)), np.array([0.9, 0.1])
    for solver, area in ((diffrax.ShARK(), "SpaceTimeLevyArea"), (diffrax.SRA1(), "SpaceTimeLevyArea")):
        message = rf"{type(solver).__name__} needs .* per_sample_path\(..., levy_area=diffrax.{area}\)"
        with pytest.raises(ValueError, match=message):
            dj.integrate(sde_of(dj.Cosine()), xt, ts, solver=solver)


def test_other_bad_arguments():
    flow, xt, ts = flow_of(dj.Cosine()), jnp.zeros((4, 2)), np.array([0.9, 0.5, 0.1])
    refused = lambda message: pytest.raises(ValueError, match=message)
    for save in ([0.95], [0.2, 0.4], np.array([[0.3]]), [np.nan], []):
        with refused("save: descending times from 0.9 to 0.1"):
            dj.integrate(flow, xt, ts, solver=diffrax.Heun(), save=save)
    with refused(r"keys: one row for each of 4 samples is needed, got shape \(2,\)"):
        dj.integrate(sde_of(dj.Cosine()), xt, ts, solver=diffrax.Euler())
    tree = diffrax.VirtualBrownianTree(-1.0, 0.0, 1e-2, (4, 2), KEY(0))
    by_tree = dj.reverse_sde(dj.Cosine(), dj.exact_denoiser(gaussian(), dj.Cosine()), tree)
    with refused("path: DDIM draws its own noise, .* got VirtualBrownianTree"):
        dj.integrate(by_tree, xt, ts, solver=dj.samplers.as_diffrax_solver(dj.DDIM(eta=1.0)))
    with refused("mesh: with a controller devices would wait"):
        dj.integrate(flow, xt, ts, solver=diffrax.Heun(), controller=tight(1e-3), mesh=mesh_of(8))
    with refused("mesh: 4 samples cannot be split evenly over 8 devices"):
        dj.integrate(flow, xt, ts, solver=diffrax.Heun(), mesh=mesh_of(8))
    conditional = dj.probability_flow(dj.Cosine(), by_network(jnp.ones((3, 3))))
    with refused(r"cond: one row for each of 4 samples is needed, got shape \(3, 3\)"):
        samplers.integrate_each(conditional, xt, ts, solver=diffrax.Heun(), controller=tight(1e-3))
    run = lambda n, chunk: dj.sample_n(
        KEY(0), dj.Cosine(), by_network(jnp.ones((3, 3))), (2,), n, ts=ts, stepper=dj.DDIM(), chunk=chunk
    )
    for n, chunk, message in ((0, 4, "n: a positive"), (4, 0, "chunk: a positive"), (4, 4, "one row for each of 4")):
        with refused(message):
            run(n, chunk)


def test_the_derivative_of_a_failed_solve_is_no_answer():
    """NaN where the value is, not the 0 of `where`; otherwise that of the value."""
    for ok, value, slope in ((True, 6.0, 2.0), (False, np.nan, np.nan)):
        found = jax.value_and_grad(lambda x, ok=ok: nan_unless(jnp.asarray(ok), 2 * x))(3.0)
        np.testing.assert_array_equal(found, (value, slope))
        tangent = jax.jvp(lambda x, ok=ok: nan_unless(jnp.asarray(ok), 2 * x), (3.0,), (1.0,))[1]
        np.testing.assert_array_equal(tangent, slope)
