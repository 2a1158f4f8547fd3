"""Metrics against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.metrics import (
    FeatureStatistics,
    density_coverage,
    feature_statistics,
    frechet_distance,
    kernel_distance,
    merge,
    nearest_distances,
    precision_recall,
    sliced_wasserstein,
)

RNG = np.random.default_rng(0)


def covariance(d, rank=None):
    root = RNG.normal(size=(d, rank or d))
    return root @ root.T


def test_feature_statistics_are_mean_and_unbiased_covariance():
    x = RNG.normal(size=(50, 3)).astype(np.float32)
    found = feature_statistics(jnp.asarray(x))
    assert found.n == 50
    np.testing.assert_allclose(found.mean, x.astype(float).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.astype(float).T), rtol=1e-10)


def test_merging_parts_gives_the_statistics_of_the_whole():
    x = RNG.normal(size=(60, 4)) + 1e4  # a large mean: sums of squares would lose the covariance
    parts = [feature_statistics(part) for part in np.split(x, [1, 2, 20])]  # parts of one row among them
    for merged in (merge(*parts), merge(*reversed(parts)), merge(merge(*parts[:2]), merge(*parts[2:]))):
        assert merged.n == 60
        np.testing.assert_allclose(merged.mean, x.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(merged.covariance, np.cov(x.T), rtol=1e-9, atol=1e-9)


def test_frechet_of_known_gaussians():
    # diagonal covariances commute: d^2 = |mean gap|^2 + sum (s_a - s_b)^2
    s_a, s_b, gap = np.array([1.0, 2.0, 0.5]), np.array([3.0, 1.0, 0.0]), np.array([1.0, -2.0, 0.5])
    turn, _ = np.linalg.qr(RNG.normal(size=(3, 3)))
    a = FeatureStatistics(100, np.zeros(3), turn @ np.diag(s_a**2) @ turn.T)
    b = FeatureStatistics(100, gap, turn @ np.diag(s_b**2) @ turn.T)
    expected = np.sum(gap**2) + np.sum((s_a - s_b) ** 2)
    # one eigenvalue is zero, and the root of its rounding has half the digits
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-8)


def test_frechet_of_covariances_that_do_not_commute():
    """In two dimensions tr((S_a S_b)^(1/2)) = sqrt(tr(S_a S_b) + 2 sqrt(det(S_a S_b))), by Cayley-Hamilton."""
    s_a, s_b = covariance(2), covariance(2)
    cross = np.sqrt(np.trace(s_a @ s_b) + 2 * np.sqrt(np.linalg.det(s_a @ s_b)))
    expected = np.trace(s_a) + np.trace(s_b) - 2 * cross
    a, b = FeatureStatistics(9, np.zeros(2), s_a), FeatureStatistics(9, np.zeros(2), s_b)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-9)
    np.testing.assert_allclose(frechet_distance(b, a), expected, rtol=1e-9)


@pytest.mark.parametrize("rank", [64, 5])
def test_frechet_of_equal_inputs_is_zero(rank):
    same = FeatureStatistics(9, RNG.normal(size=64), covariance(64, rank))
    assert frechet_distance(same, same) < 1e-9 * np.trace(same.covariance)


def test_frechet_refuses():
    one, two, other = feature_statistics(np.ones((1, 2))), feature_statistics(np.eye(2)), feature_statistics(np.eye(3))
    with pytest.raises(ValueError, match=r"a: .* 2 rows, got 1"):
        frechet_distance(one, two)
    with pytest.raises(ValueError, match=r"dimension \(2,\)"):
        frechet_distance(two, other)
    with pytest.raises(ValueError, match=r"features: .* \(3,\)"):
        feature_statistics(np.ones(3))
    with pytest.raises(ValueError, match="1 values are not finite"):
        feature_statistics(np.array([[np.nan, 0.0]]))
    with pytest.raises(ValueError, match="parts"):
        merge()


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0])
def test_sliced_in_one_dimension_is_exact_transport(order):
    """Against the brute force: repeat both samples to a common length and match in order."""
    x, y = RNG.normal(size=(6, 1)), RNG.normal(size=(4, 1)) + 1
    matched = np.abs(np.sort(np.repeat(x, 2)) - np.sort(np.repeat(y, 3)))
    expected = np.mean(matched**order) ** (1 / order)
    found = sliced_wasserstein(jax.random.key(0), jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), order=order)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_sliced_of_shifted_and_scaled_gaussians():
    """SW_2^2 = |shift|^2/d + (s - 1)^2 between N(0, I) and N(shift, s^2 I), by quantiles in every direction."""
    d, shift, s = 4, np.array([2.0, 0.0, -1.0, 0.5]), 1.5
    x, y = RNG.normal(size=(2000, d)), shift + s * RNG.normal(size=(1500, d))
    x, y = (jnp.asarray(z, jnp.float32).reshape(-1, 2, 2) for z in (x, y))
    found = sliced_wasserstein(jax.random.key(0), x, y, projections=400)
    np.testing.assert_allclose(found**2, np.sum(shift**2) / d + (s - 1) ** 2, rtol=0.1)
    assert sliced_wasserstein(jax.random.key(0), x, x[::-1]) < 1e-6


def test_sliced_refuses():
    x = jnp.ones((3, 2))
    for arguments, options, message in [
        ((x, jnp.ones((3, 3))), {}, "y: "),
        ((x, jnp.ones((0, 2))), {}, "y: "),
        ((x, x), {"projections": 0}, "projections: .* 0"),
        ((x, x), {"order": 0.5}, r"order: .* 0\.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            sliced_wasserstein(jax.random.key(0), *arguments, **options)


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_nearest_distances_are_the_minima(block):
    x, reference = RNG.normal(size=(20, 2, 3)).astype(np.float32), RNG.normal(size=(30, 2, 3)).astype(np.float32)
    x[3] = reference[17]
    every = np.linalg.norm((x[:, None].astype(float) - reference).reshape(20, 30, 6), axis=-1)
    found = nearest_distances(x, reference, block=block)
    np.testing.assert_allclose(found, every.min(axis=1), rtol=1e-12)
    assert found[3] == 0


def test_nearest_distances_keep_small_distances_far_from_the_origin():
    x = np.full((1, 8), 1e4)
    found = nearest_distances(x + 1e-6, np.concatenate([x, -x]))
    np.testing.assert_allclose(found, 1e-6 * np.sqrt(8), rtol=1e-4)


def test_nearest_distances_refuse():
    with pytest.raises(ValueError, match=r"reference: .* \(2, 4\)"):
        nearest_distances(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="reference"):
        nearest_distances(np.ones((2, 3)), np.ones((0, 3)))
    with pytest.raises(ValueError, match=r"block: .* 0"):
        nearest_distances(np.ones((2, 3)), np.ones((2, 3)), block=0)


def by_the_definitions(x, reference, k):
    """(precision, recall, density, coverage) from all distances, a point at a time."""
    x, reference = (z.reshape(len(z), -1).astype(float) for z in (x, reference))
    radius = lambda points: [sorted(np.linalg.norm(points - p, axis=1))[k] for p in points]  # the first is its own, 0
    holds = lambda points, q: [np.linalg.norm(p - q) <= r + 1e-9 for p, r in zip(points, radius(points), strict=True)]
    balls = np.array([holds(reference, q) for q in x])
    recall = np.mean([any(holds(x, q)) for q in reference])
    return balls.any(axis=1).mean(), recall, balls.sum() / (k * len(x)), balls.any(axis=0).mean()


@pytest.mark.parametrize(("k", "block"), [(1, 7), (3, 16), (3, 1024), (2, 1)])
def test_precision_recall_density_coverage_are_as_defined(k, block):
    rng = np.random.default_rng(1)
    x, reference = rng.normal(size=(30, 2, 2)), 0.5 + 2 * rng.normal(size=(45, 2, 2))
    x[3], reference[7] = reference[9], reference[8]  # a copy; twins, the radius of one another at k = 1
    expected = by_the_definitions(x, reference, k)
    assert all(0.05 < value < 0.95 for value in (*expected[:2], expected[3]))
    found = (*precision_recall(x, reference, k=k, block=block), *density_coverage(x, reference, k=k, block=block))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_precision_recall_of_equal_and_of_disjoint_sets(shift):
    """A set against itself, also far from the origin: density counts k neighbours and the point itself on average."""
    x = np.random.default_rng(2).normal(size=(50, 8)) + shift
    assert precision_recall(x, x[::-1]) == (1, 1)
    density, coverage = density_coverage(x, x)
    np.testing.assert_allclose((density, coverage), (6 / 5, 1), rtol=1e-12)
    assert precision_recall(x + 100, x) == (0, 0)
    assert density_coverage(x + 100, x) == (0, 0)


def test_a_dropped_mode_lowers_recall_and_coverage_alone_and_junk_precision_alone():
    """Half of the samples' number is one mode of two, or uniform dust far from both."""
    rng = np.random.default_rng(3)
    mode = lambda n, at: at + rng.normal(size=(n, 4))
    data = np.concatenate([mode(200, 0), mode(200, 30)])
    dropped = mode(400, 0)
    junk = np.concatenate([mode(100, 0), mode(100, 30), 1000 + 1000 * rng.uniform(size=(200, 4))])
    low, high = (0.35, 0.55), (0.85, 1.001)
    for x, precision, recall in [(dropped, high, low), (junk, low, (0.75, 1.001))]:
        found = precision_recall(x, data)
        assert precision[0] < found.precision < precision[1]
        assert recall[0] < found.recall < recall[1]
    assert low[0] < density_coverage(dropped, data).coverage < low[1]
    assert 0.35 < density_coverage(junk, data).density < 0.65
    assert 0.85 < density_coverage(mode(200, 0), data[:200]).density < 1.15


def test_an_outlier_in_the_data_leads_precision_and_not_density():
    """Samples all around one outlier of the data are in its large ball: precision 1, density 1/k."""
    rng = np.random.default_rng(4)
    data = np.concatenate([rng.normal(size=(200, 2)), [[100.0, 0.0]]])
    x = [100, 0] + 10 * rng.normal(size=(200, 2))
    assert precision_recall(x, data).precision == 1
    np.testing.assert_allclose(density_coverage(x, data), (1 / 5, 1 / 201), rtol=1e-12)


def test_precision_recall_refuse():
    for arguments, options, message in [
        ((np.ones((9, 3)), np.ones((9, 4))), {}, r"reference: .* \(9, 4\)"),
        ((np.ones((9, 3)), np.ones((3, 3))), {"k": 3}, "reference: more than 3 rows .* got 3"),
        ((np.ones((9, 3)), np.ones((9, 3))), {"k": 0}, "k: .* 0"),
        ((np.ones((9, 3)), np.ones((9, 3))), {"block": 0}, "block: .* 0"),
        ((np.full((9, 3), np.nan), np.ones((9, 3))), {}, "x: 27 values are not finite"),
    ]:
        for metric in (precision_recall, density_coverage):
            with pytest.raises(ValueError, match=message):
                metric(*arguments, **options)
    with pytest.raises(ValueError, match=r"x: more than 3 rows .* got 3"):
        precision_recall(np.ones((3, 2)), np.ones((9, 2)))
    with pytest.raises(ValueError, match=r"x: more than 0 rows .* got 0"):
        density_coverage(np.ones((0, 2)), np.ones((9, 2)))


# --- kernel distance --------------------------------------------------------------------------------------------------


def polynomial(x, y, degree):
    return (x @ y / len(x) + 1) ** degree


@pytest.mark.parametrize(("degree", "block"), [(1, 1024), (3, 2)])
def test_kernel_distance_is_its_definition(degree, block):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)), 0.5 + rng.normal(size=(7, 3))
    within = sum(polynomial(x[i], x[j], degree) for i in range(5) for j in range(5) if i != j) / 20
    within += sum(polynomial(y[i], y[j], degree) for i in range(7) for j in range(7) if i != j) / 42
    between = sum(polynomial(a, b, degree) for a in x for b in y) / 35
    found = kernel_distance(x, y, degree=degree, block=block)
    np.testing.assert_allclose(found, within - 2 * between, rtol=1e-12)


def test_kernel_distance_has_no_bias():
    """Averaged over every sample of two points from three atoms, by its probability, it is the population's."""
    atoms, p, q = np.array([[0.0, 1.0], [1.0, -1.0], [2.0, 0.5]]), np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    gram = np.array([[polynomial(a, b, 3) for b in atoms] for a in atoms])
    pairs = [(i, j) for i in range(3) for j in range(3)]
    expected = sum(
        p[i] * p[j] * q[k] * q[m] * kernel_distance(atoms[[i, j]], atoms[[k, m]]) for i, j in pairs for k, m in pairs
    )
    np.testing.assert_allclose(expected, (p - q) @ gram @ (p - q), rtol=1e-12)


def test_kernel_distance_refuses():
    for x, y, match in [
        (np.ones((1, 2)), np.ones((3, 2)), r"x: .* \(1, 2\)"),
        (np.ones((3, 2)), np.ones((3, 4)), "reference: 2 features"),
        (np.full((3, 2), np.nan), np.ones((3, 2)), "x: 6 values"),
    ]:
        with pytest.raises(ValueError, match=match):
            kernel_distance(x, y)
    with pytest.raises(ValueError, match=r"degree: .* 0"):
        kernel_distance(np.ones((3, 2)), np.ones((3, 2)), degree=0)
