"""The Fokker-Planck solver against exact densities: Gaussian processes, noise that depends on x, phase space."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import integrate, special, stats

import diffjax as dj
from diffjax.analytic import Box, cell_averages, cell_centres, cell_widths, fokker_planck
from diffjax.process import SDE, CriticallyDamped, OrnsteinUhlenbeck, SubVP

TS = np.array([0.0, 0.05, 0.2, 1.0])


def bimodal():
    return dj.GaussianMixture(jnp.array([[-1.0], [1.2]]), jnp.array([0.09, 0.16]), jnp.array([1.0, 2.0]))


def plane():
    covariances = jnp.array([[[0.3, 0.15], [0.15, 0.4]], [[0.5, -0.2], [-0.2, 0.3]]])
    return dj.GaussianMixture(jnp.array([[-1.0, 0.5], [1.0, -0.3]]), covariances, jnp.array([1.0, 2.0]))


def distances(box, found, exact):
    """The L1 distance of each density to its truth; and that they are densities, of one mass to 1e-10."""
    found, volume = np.asarray(found), float(jnp.prod(cell_widths(box)))
    over = tuple(range(1, found.ndim))
    mass = volume * found.sum(over)
    np.testing.assert_allclose(mass, mass[0], rtol=0, atol=1e-10)
    assert found.min() >= 0
    assert found.shape[1:] == box.cells
    return volume * np.abs(found - np.asarray(exact)).sum(over)


def solved(process, data, box, ts=TS):
    """The distances to the exact densities of a Gaussian process."""
    low, _ = process.interval()
    exact = jax.jit(lambda t: cell_averages(box, lambda x: data.log_prob(process, x, t)))
    truth = jnp.stack([exact(jnp.maximum(t, low)) for t in jnp.asarray(ts)])
    found = fokker_planck(process, box, truth[0], ts)
    np.testing.assert_array_equal(found[0], truth[0])
    return distances(box, found, truth)


@pytest.mark.slow
def test_vp_moves_a_mixture_as_it_should_to_second_order():
    coarse, fine = (solved(dj.VariancePreserving(), bimodal(), Box(-6.0, 6.0, cells))[1:] for cells in (120, 240))
    assert np.all(fine < 1e-3)
    np.testing.assert_allclose(np.log2(coarse / fine), 2, atol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("process", "bound"), [(OrnsteinUhlenbeck, 1e-3), (SubVP, 1e-3), (dj.Rectified, 4e-3)])
def test_other_processes_move_it_as_they_should(process, bound):
    """The last two have next to no noise at first: |u| h/D > 2 there, where the slopes are limited."""
    assert np.all(solved(process(), bimodal(), Box(-6.0, 6.0, 240), np.array([0.0, 0.05, 0.2, 0.9])) < bound)


@pytest.mark.slow
def test_a_mixture_of_full_covariance_in_the_plane():
    """60 cells a side are three a standard deviation; the slow test halves them."""
    distance = solved(dj.VariancePreserving(), plane(), Box([-5.0, -4.5], [5.0, 4.5], (60, 54)), np.array([0.0, 0.2]))
    assert 1e-4 < distance[1] < 4e-3


@pytest.mark.slow
def test_second_order_in_the_plane():
    ts = np.array([0.0, 0.05])
    boxes = (Box([-5.0, -5.0], [5.0, 5.0], (cells, cells)) for cells in (40, 80))
    coarse, fine = (solved(dj.VariancePreserving(), plane(), box, ts)[1:] for box in boxes)
    assert np.all(fine < 1e-3)
    np.testing.assert_allclose(np.log2(coarse / fine), 2, atol=0.2)


# --- noise that depends on x ---


def lognormal_averages(box, mean, std):
    edges = np.linspace(float(box.low[0]), float(box.high[0]), box.cells[0] + 1)
    return np.diff(stats.lognorm(std, scale=np.exp(mean)).cdf(edges)) / np.diff(edges)


@pytest.mark.slow
def test_geometric_brownian_motion_and_g_inside_the_laplacian():
    """x = x0 exp((m - s^2/2) t + s w) is lognormal. With g outside, div(g^2 grad p)/2, the law would be another one:
    that of the drift m x + s^2 x."""
    box = Box(0.0, 12.0, 300)
    exact = np.stack([lognormal_averages(box, 0.175 * t, np.sqrt(0.09 + 0.25 * t)) for t in TS])
    drift, noise = lambda m, x, t: m * x, lambda x, t: 0.5 * x
    process, outside = (SDE(Partial(drift, jnp.asarray(m)), noise) for m in (0.3, 0.55))
    assert np.all(distances(box, fokker_planck(process, box, jnp.asarray(exact[0]), TS), exact) < 1e-3)
    wrong = distances(box, fokker_planck(outside, box, jnp.asarray(exact[0]), TS), exact)
    assert wrong[-1] > 0.1


@pytest.mark.slow
def test_heavy_tails_where_noise_grows_with_x():
    """dx = -a k x dt + sqrt(a (1 + x^2)) dw is stationary at p ~ (1 + x^2)^-(k + 1), from wherever it starts."""
    k, a, box = 4.0, 5.0, Box(-6.0, 6.0, 300)
    process = SDE(lambda x, t: -a * k * x, lambda x, t: jnp.sqrt(a * (1 + x**2)))
    start = cell_averages(box, lambda x: jax.scipy.stats.norm.logpdf(x[:, 0], 0.5, 0.4))
    scale = special.gamma(k + 1) / special.gamma(k + 0.5) / np.sqrt(np.pi)
    edges = np.linspace(-6, 6, 301)
    exact = [integrate.quad(lambda x: scale * (1 + x**2) ** -(k + 1), *cell)[0] for cell in itertools.pairwise(edges)]
    found = fokker_planck(process, box, start, np.array([0.0, 1.0]))
    assert distances(box, found[1:], np.array([exact]) / 0.04)[0] < 1e-3


@pytest.mark.slow
def test_phase_space_where_no_noise_reaches_the_position():
    """Critically damped Langevin, to second order by the limited slopes: upwinding alone is off by 0.04.

    The Gaussian's moments by their differential equations, in SciPy.
    """
    process, ts = CriticallyDamped(), np.array([0.0, 0.15])
    drift, noise = np.array([[0, 16.0], [-4, -16]]), np.array([[0, 0], [0, 8.0]])  # of beta = 4, M = 1/4, Gamma = 1

    def rates(t, y):
        mean, covariance = y[:2], y[2:].reshape(2, 2)
        return np.concatenate([drift @ mean, (drift @ covariance + covariance @ drift.T + noise).ravel()])

    start = np.concatenate([[0.5, -0.3], [0.5, 0.1, 0.1, 0.4]])
    end = integrate.solve_ivp(rates, ts, start, rtol=1e-10, atol=1e-12).y[:, -1]
    errors = []
    for cells in (40, 80):
        box = Box([-5.0, -4.0], [5.0, 4.0], (cells, cells))
        log_prob = lambda y: lambda x: dj.Gaussian(y[:2], y[2:].reshape(2, 2)).log_prob(dj.Rectified(), x, 0.0)
        exact = jnp.stack([cell_averages(box, log_prob(jnp.asarray(y))) for y in (start, end)])
        errors.append(distances(box, fokker_planck(process, box, exact[0], ts), exact)[1])
    assert errors[1] < 0.008
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 2, atol=0.3)


# --- inside transformations, cells, bad input ---


@pytest.mark.slow
def test_it_is_differentiable_and_maps_over_processes():
    """d/dH of the mean exp(-H t) m, forwards, under jit and vmap."""
    box, data = Box(-6.0, 6.0, 120), dj.Gaussian(jnp.array([1.5]), 0.3)
    start = cell_averages(box, lambda x: data.log_prob(OrnsteinUhlenbeck(), x, 0.0))

    def mean(horizon):
        p = fokker_planck(OrnsteinUhlenbeck(horizon), box, start, jnp.array([0.0, 0.5]))[-1]
        return jnp.sum(p * cell_centres(box)[:, 0]) * 0.1

    horizons = jnp.array([1.0, 2.0])
    means, slopes = jax.jit(jax.vmap(lambda h: jax.jvp(mean, (h,), (jnp.ones_like(h),))))(horizons)
    np.testing.assert_allclose(means, 1.5 * np.exp(-0.5 * np.array([1.0, 2.0])), rtol=3e-3)
    np.testing.assert_allclose(slopes, -0.75 * np.exp(-0.5 * np.array([1.0, 2.0])), rtol=1e-2)


def test_cells_and_their_averages():
    box = Box([-1.0, 0.0], [1.0, 3.0], (4, 3))
    np.testing.assert_allclose(cell_widths(box), [0.5, 1.0])
    np.testing.assert_allclose(cell_centres(box)[1, 2], [-0.25, 2.5])
    averages = cell_averages(box, lambda x: jnp.log(x[:, 0] ** 2 * x[:, 1] ** 3))
    expected = [[1 / 3 * (0.5**3) / 0.5 * (81 - 16) / 4]]  # over [0, 0.5] x [2, 3]
    np.testing.assert_allclose(averages[2, 2], expected[0][0], rtol=1e-12)


def test_bad_boxes_are_refused():
    with pytest.raises(ValueError, match=r"high: must be above low = 1\.0, got 1\.0"):
        Box(1.0, 1.0, 10)
    with pytest.raises(ValueError, match=r"cells: at least 3 .*got \(10, 2\)"):
        Box([0.0, 0.0], [1.0, 1.0], (10, 2))
    with pytest.raises(ValueError, match=r"cells: a box has 1 or 2 dimensions, got \(3, 3, 3\)"):
        Box([0.0] * 3, [1.0] * 3, (3, 3, 3))
    with pytest.raises(ValueError, match=r"low, high: 2 numbers are needed"):
        Box(0.0, 1.0, (10, 10))


def test_cells_that_are_too_coarse_and_densities_that_do_not_fit_are_refused():
    process, box = dj.VariancePreserving(), Box(-6.0, 6.0, 60)
    narrow = lambda std: cell_averages(box, lambda x: jax.scipy.stats.norm.logpdf(x[:, 0], 0.05, std), 16)
    good = narrow(0.5)
    with pytest.raises(
        ValueError, match=r"cells: 60 along axis 0, each 0\.2 wide, are too coarse .* t = 0: .* to 0\.7"
    ):
        fokker_planck(process, box, narrow(0.2), TS)
    with pytest.raises(ValueError, match=r"density0: must have mass 1 .*got 0\.5"):
        fokker_planck(process, box, 0.5 * good, TS)
    with pytest.raises(ValueError, match=r"density0: must not be negative, got -0\.01"):
        fokker_planck(process, box, good.at[0].set(-0.01), TS)
    with pytest.raises(ValueError, match=r"density0: one number a cell is needed, shape \(60,\), got \(61,\)"):
        fokker_planck(process, box, jnp.ones(61), TS)
    with pytest.raises(ValueError, match=r"ts: must ascend"):
        fokker_planck(process, box, good, np.array([0.0, 0.5, 0.4]))
    with pytest.raises(ValueError, match=r"ts: two times lie beyond the same end"):
        fokker_planck(process, box, good, np.array([0.0, 1e-12, 0.4]))
    with pytest.raises(ValueError, match=r"process: drift or noise is not finite .* t = 0\.0"):
        fokker_planck(SDE(lambda x, t: x / t, lambda x, t: 1.0), box, good, TS)


def test_too_many_steps_and_boxes_that_are_too_small_are_refused_before_the_first():
    """Of the steps, 2 D/h^2 a unit of time, over 0.9: here 16/0.0025/0.9 = 7111, and in (0.2, 1) 0.8 of that."""
    box, fast = Box(-6.0, 6.0, 240), SDE(lambda x, t: 0 * x, lambda x, t: 4.0)
    start = cell_averages(box, lambda x: jax.scipy.stats.norm.logpdf(x[:, 0], 0.0, 0.5))
    with pytest.raises(ValueError, match=r"at least 5\.69e\+03 steps between t = 0\.2 and 1, .* = 5000; take fewer"):
        fokker_planck(fast, box, start, np.array([0.0, 0.2, 1.0]), max_steps=5000)
    box = Box(-1.0, 6.0, 140)
    start = cell_averages(box, lambda x: jax.scipy.stats.norm.logpdf(x[:, 0], 0.0, 0.5)) / stats.norm.sf(-2)
    with pytest.raises(ValueError, match=r"low, high: .*vanish at the walls.* hold 0\.00611 .* at t = 0, .*larger box"):
        fokker_planck(fast, box, start, np.array([0.0, 1.0]))


@pytest.mark.slow
def test_what_shows_on_the_way_is_refused():
    """A strong pull with hardly any noise: the density grows narrower than a cell. A drift into a wall. And more steps
    than there are, by the estimate and, where that is a little too low, on the way."""
    box, pull = Box(-6.0, 6.0, 60), SDE(lambda x, t: -5 * x, lambda x, t: 0.1)
    start = cell_averages(box, lambda x: jax.scipy.stats.norm.logpdf(x[:, 0], 0.05, 0.5))
    with pytest.raises(ValueError, match=r"cells: 60 along axis 0.* too coarse .* t = 1: .*more than 0\.25"):
        fokker_planck(pull, box, start, np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"low, high: .*vanish at the walls.* at t = 1, more than 0\.001"):
        fokker_planck(SDE(lambda x, t: 0 * x + 5.0, lambda x, t: 0.5), box, start, np.array([0.0, 0.5, 1.0]))
    vp, ts = dj.VariancePreserving(), np.array([0.0, 1.0])
    with pytest.raises(ValueError, match=r"cells: \(60,\) take at least .* steps") as caught:
        fokker_planck(vp, box, start, ts, max_steps=10)
    least = float(re.search(r"at least (\S+) steps", str(caught.value))[1])
    with pytest.raises(ValueError, match=r"cells: \(60,\) take more than max_steps"):
        fokker_planck(vp, box, start, ts, max_steps=int(1.01 * least))
    fokker_planck(vp, box, start, ts, max_steps=int(1.3 * least))


def test_noise_that_mixes_the_axes_is_refused():
    box = Box([-3.0, -3.0], [3.0, 3.0], (30, 30))
    start = cell_averages(box, lambda x: jnp.sum(jax.scipy.stats.norm.logpdf(x, 0.0, 0.6), axis=1))
    mixing = SDE(lambda x, t: -x, lambda x, t: jnp.broadcast_to(jnp.array([[1.0, 0.0], [0.5, 1.0]]), (len(x), 2, 2)))
    with pytest.raises(ValueError, match=r"process: noise must be diagonal, got off-diagonal .* up to 0\.5"):
        fokker_planck(mixing, box, start, np.array([0.0, 0.1]))
