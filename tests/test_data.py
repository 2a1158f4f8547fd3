"""Data: batches are a function of (seed, step, size), epochs are permutations, toys have the density they claim."""

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
from scipy.stats import multivariate_normal

from diffjax.data import Mixture, checkerboard, from_arrays, load_digits, mixture, swiss_roll, two_moons, whole

TOYS = {"mixture": mixture(), "checkerboard": checkerboard(), "two_moons": two_moons(), "swiss_roll": swiss_roll()}
SOURCES = TOYS | {"arrays": from_arrays(np.arange(20.0).reshape(10, 2), np.arange(10))}


@pytest.mark.parametrize("name", list(SOURCES))
def test_source_contract(name):
    source = SOURCES[name]
    x, cond = source(3, 5, 7)
    assert x.dtype == np.float32
    assert x.shape == (7, 2)
    assert cond is None or (cond.dtype == np.int32 and cond.shape == (7,))
    source(3, 6, 7), source(4, 5, 7)  # other calls in between change nothing
    again, cond_again = source(3, 5, 7)
    np.testing.assert_array_equal(x, again)
    np.testing.assert_array_equal(cond, cond_again)
    assert np.any(source(3, 6, 7)[0] != x)
    assert np.any(source(4, 5, 7)[0] != x)


@pytest.mark.parametrize("name", list(SOURCES))
@pytest.mark.parametrize(("position", "message"), [((-1, 0, 1), "seed"), ((0, -1, 1), "step"), ((0, 0, 0), "size")])
def test_source_refuses_bad_positions(name, position, message):
    with pytest.raises(ValueError, match=message):
        SOURCES[name](*position)


@pytest.mark.parametrize("name", [*SOURCES, "of_three_arguments"])
def test_parts_are_the_same_batch_in_order(name):
    """Rows i size/n .. (i + 1) size/n - 1, whatever n is, across the border of epochs too."""
    source = (SOURCES | {"of_three_arguments": whole(lambda *position: SOURCES["arrays"](*position))})[name]
    for step in (0, 5):
        everything = source(3, step, 12)
        for count in (1, 2, 3, 12):
            parts = [source(3, step, 12, part=(i, count)) for i in range(count)]
            assert all(len(x) == 12 // count for x, _ in parts)
            for which, want in enumerate(everything):
                assert want is None or np.array_equal(np.concatenate([pair[which] for pair in parts]), want)
    with pytest.raises(ValueError, match=r"size: 12 items .* 5 parts"):
        source(3, 0, 12, part=(0, 5))
    for part in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=r"part: \(i, n\)"):
            source(3, 0, 12, part=part)


def test_each_epoch_is_a_permutation_in_any_order_of_access():
    source = from_arrays(np.arange(10.0), np.arange(10))
    steps = [source(0, step, 4) for step in range(15)]
    in_order = np.concatenate([x for x, _ in steps]).reshape(6, 10)
    np.testing.assert_array_equal(np.sort(in_order, axis=1), np.broadcast_to(np.arange(10), (6, 10)))
    assert len({tuple(epoch) for epoch in in_order}) == 6
    for step in (14, 2, 7, 0):
        np.testing.assert_array_equal(from_arrays(np.arange(10.0))(0, step, 4)[0], steps[step][0])
    for x, cond in steps:
        np.testing.assert_array_equal(x, cond)
    # the order of items does not depend on the batch size, even one larger than several epochs
    np.testing.assert_array_equal(source(0, 0, 60)[0].reshape(6, 10), in_order)


def test_shuffling_is_uniform():
    """Where item 0 lands within an epoch, over many seeds: chi-square of 9 degrees of freedom."""
    source = from_arrays(np.arange(10.0))
    places = [int(np.argmin(source(seed, 0, 10)[0])) for seed in range(2000)]
    counts = np.bincount(places, minlength=10)
    assert np.sum((counts - 200) ** 2 / 200) < 30  # exceeded with probability 4e-4


@pytest.mark.parametrize(
    ("x", "cond", "message"),
    [
        ([[0.0, 1.0], [np.nan, np.inf]], None, r"x: 2 of 4 values are not finite, the first nan at \(1, 0\)"),
        ([1.0, 2.0], [0.0, np.nan], r"cond: 1 of 2 values are not finite, the first nan at \(1,\)"),
        ([1.0, 2.0], [0, 1, 2], r"cond: .* 2 of them, got shape \(3,\)"),
        ([], None, r"x: at least one item .* \(0,\)"),
        (["a"], None, "x: real numbers are needed"),
    ],
)
def test_from_arrays_refuses_bad_arrays(x, cond, message):
    with pytest.raises(ValueError, match=message):
        from_arrays(x, cond)


def test_from_arrays_keeps_integers_small_and_values_as_they_are():
    x, cond = from_arrays(np.array([[0, 255]], np.uint8), np.array([[0.5, 1.0]]))(0, 0, 2)
    np.testing.assert_array_equal(x, [[0, 255], [0, 255]])
    assert x.dtype == cond.dtype == np.float32


def test_digits_split_is_disjoint_complete_and_stratified():
    data, target = sklearn.datasets.load_digits(return_X_y=True)
    (train, train_labels), (test, test_labels) = load_digits("train"), load_digits("test")
    assert train.dtype == test.dtype == np.float32
    assert train_labels.dtype == np.int32
    assert train.shape[1:] == (8, 8, 1)
    assert (train.min(), train.max()) == (-1, 1)
    everything = np.concatenate([train, test]).reshape(-1, 64) * 8 + 8
    labels = np.concatenate([train_labels, test_labels])

    def rows(x, y):
        return sorted(map(tuple, np.column_stack([x, y]).astype(int)))

    assert rows(everything, labels) == rows(data, target)  # the multiset of all items: disjoint and complete
    everything, labels = load_digits("train", holdout=0.0)
    np.testing.assert_array_equal(everything.reshape(-1, 64) * 8 + 8, data)  # in the data set's own order
    np.testing.assert_array_equal(labels, target)
    for label in range(10):
        assert np.sum(test_labels == label) == round(0.2 * np.sum(target == label))


def test_digits_split_follows_the_seed():
    np.testing.assert_array_equal(load_digits("test")[0], load_digits("test", seed=0)[0])
    assert np.any(load_digits("test")[0][:100] != load_digits("test", seed=1)[0][:100])
    assert len(load_digits("test", holdout=0.0)[0]) == 0
    with pytest.raises(ValueError, match=r"split: .* 'valid'"):
        load_digits("valid")
    with pytest.raises(ValueError, match=r"holdout: .* 1\.0"):
        load_digits(holdout=1.0)


OTHER_TOYS = {
    "mixture": mixture(components=3, std=0.6),
    "checkerboard": checkerboard(cells=6),
    "two_moons": two_moons(noise=0.7),
    "swiss_roll": swiss_roll(noise=5.0),
}


@pytest.mark.parametrize("name", list(TOYS))
@pytest.mark.parametrize("toys", [TOYS, OTHER_TOYS], ids=["default", "other"])
def test_toys_are_standardised(toys, name):
    """Mean 0 and total variance 2, within five standard errors."""
    x, _ = toys[name](0, 0, 40_000)
    standard_error = x.std(axis=0) / 200
    np.testing.assert_array_less(np.abs(x.mean(axis=0)), 5 * standard_error)
    square = np.sum(x.astype(float) ** 2, axis=1)
    assert abs(square.mean() - 2) < 5 * square.std() / 200 + 1e-6


@pytest.mark.parametrize("name", ["mixture", "checkerboard"])
def test_log_prob_is_the_density_that_is_drawn_from(name):
    """It integrates to one, and predicts the share of draws in each of 400 boxes (chi-square)."""
    toy = TOYS[name]
    edges = np.linspace(-2.5, 2.5, 801)
    middles = (edges[1:] + edges[:-1]) / 2
    plane = np.stack(np.meshgrid(middles, middles, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)
    density = np.concatenate([np.exp(toy.log_prob(part)) for part in np.array_split(plane, 4)]).reshape(800, 800)
    share = density.reshape(20, 40, 20, 40).sum(axis=(1, 3)) * (5 / 800) ** 2
    assert abs(share.sum() - 1) < 5e-3
    n = 100_000
    x, _ = toy(0, 0, n)
    counts, _, _ = np.histogram2d(x[:, 0], x[:, 1], bins=np.linspace(-2.5, 2.5, 21))
    large = n * share > 50
    z = (counts - n * share)[large] / np.sqrt(n * share[large])
    assert np.sum(z**2) < large.sum() + 5 * np.sqrt(2 * large.sum())
    assert counts[~large].sum() <= n * share[~large].sum() + 5 * np.sqrt(n * share[~large].sum()) + 1


def test_mixture_exposes_what_an_oracle_needs():
    toy = Mixture(
        np.array([[0.0, 1.0], [2.0, 0.0], [-1.0, -1.0]]),
        np.array([[[1.0, 0.5], [0.5, 0.5]], np.eye(2), 0.1 * np.eye(2)]),
        np.array([0.2, 0.5, 0.3]),
    )
    x, component = toy(0, 0, 30_000)
    np.testing.assert_allclose(np.bincount(component) / 30_000, toy.weights, atol=0.015)
    for k in range(3):
        mine = x[component == k]
        np.testing.assert_allclose(mine.mean(axis=0), toy.means[k], atol=0.07)
        np.testing.assert_allclose(np.cov(mine.T), toy.covariances[k], atol=0.07)
    each = [
        w * multivariate_normal(m, c).pdf(x[:50])
        for m, c, w in zip(toy.means, toy.covariances, toy.weights, strict=True)
    ]
    np.testing.assert_allclose(toy.log_prob(jnp.asarray(x[:50])), np.log(sum(each)), rtol=1e-4, atol=1e-4)


def test_moons_and_roll_lie_on_their_curves():
    x, moon = two_moons(noise=0.0)(0, 0, 500)
    scale = np.sqrt((3 / 4 + 9 / 16 - 1 / np.pi) / 2)
    centres = np.array([[0.0, 0.0], [1.0, 0.5]])[moon]
    radius = np.linalg.norm(x * scale + (0.5, 0.25) - centres, axis=1)
    np.testing.assert_allclose(radius, 1, atol=1e-5)
    x, _ = swiss_roll(noise=0.0)(0, 0, 500)
    scale = np.sqrt((39 * np.pi**2 / 4 - 4 - 4 / (9 * np.pi**2)) / 2)
    u = x * scale + (2.0, 2 / (3 * np.pi))
    t = np.linalg.norm(u, axis=1)
    np.testing.assert_allclose(u, t[:, None] * np.stack([np.cos(t), np.sin(t)], axis=1), atol=1e-3)


@pytest.mark.parametrize(
    ("make", "spread"),
    [(two_moons, 3 / 4 + 9 / 16 - 1 / np.pi), (swiss_roll, 39 * np.pi**2 / 4 - 4 - 4 / (9 * np.pi**2))],
    ids=["two_moons", "swiss_roll"],
)
def test_noise_around_a_curve_has_its_standard_deviation(make, spread):
    """Before standardising: the same draws with and without noise, in the curve's own units, differ by it."""
    curve, noisy = (
        np.sqrt(spread / 2 + noise**2) * make(noise=noise)(0, 0, 20_000)[0].astype(float) for noise in (0.0, 0.7)
    )
    difference = noisy - curve
    assert abs(difference.mean()) < 5 * 0.7 / 200
    assert abs(difference.std() - 0.7) < 5 * 0.7 / np.sqrt(2 * difference.size)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mixture(components=2), "components: .* 2"),
        (lambda: mixture(std=1.0), r"std: .* 1\.0"),
        (lambda: checkerboard(cells=3), "cells: .* 3"),
        (lambda: two_moons(noise=-1.0), r"noise: .* -1\.0"),
    ],
)
def test_toys_refuse_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
