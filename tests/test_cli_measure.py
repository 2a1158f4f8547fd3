"""The figures that `diffjax train` and `diffjax evaluate` report, against the same computed again in NumPy."""

import itertools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import call, covers, done, draw, measures, read_run, refused
from figures import frechet, nearest, ring, shares_in_balls, sliced

import diffjax as dj
from diffjax.cli import _draw, _measure
from diffjax.config import Config, Data, build, diffusion_family
from diffjax.config._denoising import Denoising
from diffjax.data import load_digits, mixture
from diffjax.likelihood import Exact, adaptive
from diffjax.metrics import feature_statistics, frechet_distance

SLICED = "sliced Wasserstein distance to held out"


@pytest.fixture(scope="module")
def trained(toy_run):
    """The run of the conditional mixture, as the library reads it."""
    return read_run(toy_run)


def printed(text):
    """Name -> number of each line `name  number`, in order."""
    return {name: float(value.replace(",", "")) for name, value in re.findall(r"^(\S.*?) {2,}(\S+)$", text, re.M)}


def plane(x):
    """The figures of samples of the mixture: its own draws at two seeds that no run can have are the rest."""
    train, held_out = (mixture()(2**32 + i, 0, 4000)[0] for i in (0, 1))
    theta = np.asarray(jax.random.normal(jax.random.key(0), (128, 2)), np.float64)
    theta /= np.sqrt(np.sum(theta**2, axis=1, keepdims=True))
    noise = np.asarray(jax.random.normal(jax.random.key(1), x.shape))
    gaussian = held_out.mean(0) + held_out.std(0) * noise
    return {
        "samples": len(x),
        f"{SLICED}: samples": sliced(theta, x, held_out),
        f"{SLICED}: floor, other data": sliced(theta, train[: len(x)], held_out),
        f"{SLICED}: ceiling, a Gaussian": sliced(theta, gaussian, held_out),
    }


def as_frequent(n):
    """n sorted labels, as often as the mixture has them at the seed of its training items."""
    labels = np.sort(mixture()(2**32, 0, 4000)[1])
    return labels[np.floor((np.arange(n) + 0.5) / n * 4000).astype(int)]


def check(found, wanted, rel):
    """The same names in the same order, and the same figures; how long sampling took is not compared."""
    assert list(found) == [*list(wanted)[:1], "sampling seconds", *list(wanted)[1:]]
    assert found["sampling seconds"] > 0
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=rel), name


def test_the_figures_of_a_run_and_of_its_evaluation(toy_run, trained, capfd):
    """By default both draw 1800 samples from seed 0, with the run's own guidance and steps."""
    wanted = plane(draw(trained, 1800, as_frequent(1800)))
    check(measures(toy_run), wanted, 1e-4)
    check(printed(done(capfd, "evaluate", toy_run)), wanted, 1e-3)


@covers("evaluate", "run", "n", "seed", "chunk", "likelihood")
def test_an_evaluation_with_every_option_prints_the_librarys_figures(toy_run, trained, monkeypatch, capfd):
    chunks = []
    split = _draw.Draw._split
    monkeypatch.setattr(_draw.Draw, "_split", lambda self, rows: chunks.append(len(rows)) or split(self, rows))
    options = ["--n", 20, "--guidance", 4, "--steps", 3, "--seed", 5, "--chunk", 8, "--likelihood", 5]
    out = done(capfd, "evaluate", toy_run, *options)
    process = dj.Cosine()
    wanted = plane(draw(trained, 20, as_frequent(20), seed=5, scale=4.0, ts=dj.logsnr_grid(process, 3)))
    x, labels = mixture()(2**32 + 1, 0, 4000)
    denoiser = dj.make_denoiser(dj.Diffusion(trained.network, process, dj.VPrediction()), trained.ema, labels[:5])
    nats = dj.log_likelihood(
        jax.random.key(5), process, denoiser, jnp.asarray(x[:5]), divergence=Exact(), controller=adaptive(1e-3)
    ).nats
    each = np.asarray(nats, np.float64) / 2
    name = "log density of held out, nats per dimension of x (continuous, at logsnr 14)"
    wanted |= {
        f"{name}: mean": np.sum(each) / 5,
        f"{name}: standard error": np.sqrt(np.sum((each - np.mean(each)) ** 2) / 4 / 5),
        f"{name}: mean of the exact density": np.mean(ring(x[:5])) / 2,
    }
    check(printed(out), wanted, 1e-3)
    assert chunks == 6 * [8]  # index and labels of three chunks


def test_results_are_printed_a_line_each_by_name(capfd):
    _measure.show({"samples": 1800, "a distance": 0.0123456, "the longest of all": 1234567.0})
    assert capfd.readouterr().out == (
        "samples             1,800\na distance          0.01235\nthe longest of all  1.235e+06\n"
    )


def test_measured_labels_are_as_frequent_as_in_training():
    y = np.repeat([4, 0, 1], [10, 60, 30])
    np.testing.assert_array_equal(np.bincount(_measure.proportional_labels(y, 50)), [30, 15, 0, 0, 5])
    for n in (7, 100, 333):
        counts = np.bincount(_measure.proportional_labels(y, n), minlength=5)
        assert np.abs(counts - np.bincount(y) * n / 100).max() <= 1


def test_images_of_many_pixels_are_compared_by_projections():
    rng = np.random.default_rng(1)
    few, many = _measure.pixels((8, 8, 1)), _measure.pixels((40, 40, 3))
    x = rng.normal(size=(500, 8, 8, 1))
    np.testing.assert_array_equal(few.of(x), x.reshape(500, 64))
    a, shift = rng.normal(size=(400, 40, 40, 3)).astype(np.float32), rng.normal(size=(40, 40, 3)).astype(np.float32)
    projected, moved = many.of(a), many.of(a + shift)
    assert (few.name, many.name, projected.shape) == ("", "256 random projections", (400, 256))
    # In expectation squared lengths are kept: of 400 images, and of the difference between two sets.
    assert np.sum(projected**2) == pytest.approx(np.sum(a**2), rel=0.05)
    np.testing.assert_allclose(moved - projected, np.tile(many.of(shift[None]), (400, 1)), rtol=1e-3, atol=1e-3)
    assert frechet_distance(feature_statistics(moved), feature_statistics(projected)) == pytest.approx(
        np.sum(shift**2), rel=5 * (2 / 256) ** 0.5
    )


def images(n, shift, seed):
    """n images of 2x3 pixels, whose pixels differ in mean and in scale."""
    rng = np.random.default_rng(seed)
    scale = np.array([[0.1, 0.3, 0.2], [0.4, 0.1, 0.5]])
    return (shift + np.linspace(-1, 1, 6).reshape(2, 3) + rng.normal(size=(n, 2, 3)) * scale)[..., None].astype("f4")


def test_figures_of_images(monkeypatch):
    """Every figure, of the arrays it is named after; shuffled pixels are each training image's own."""
    train, held_out, x = images(40, 0.0, 0), images(30, 0.1, 1), images(25, 0.5, 2)
    labels = np.repeat([0, 1, 2, 2], 10)
    data = Data(lambda *_: (train, labels), (train, labels), (held_out, labels[:30]), 3, None)
    seen, asked = [], []

    def of(images):
        seen.append(images)
        return images.reshape(len(images), -1)[:, :4]

    def drawing(*args):
        asked.append(args)
        return x

    monkeypatch.setattr(_measure, "time", types.SimpleNamespace(perf_counter=itertools.count(7.0, 2.5).__next__))
    found, *given = _measure.measure(drawing, data, n=25, seed=9, features=_measure.Features("four pixels", of))
    assert found["sampling seconds"] == 2.5
    ((n, drawn_labels, seed),) = asked
    assert (n, seed) == (25, 9)
    np.testing.assert_array_equal(np.bincount(drawn_labels), [6, 6, 13])
    assert given[0] is x
    assert given[1] is drawn_labels
    shuffled = next(a for a in seen if not any(a is b for b in (train, held_out, x)))
    np.testing.assert_array_equal(np.sort(shuffled.reshape(40, 6)), np.sort(train.reshape(40, 6)))
    places = np.argsort(np.argsort(shuffled.reshape(40, 6))) - np.argsort(np.argsort(train.reshape(40, 6)))
    assert len(np.unique(places, axis=0)) > 30  # each in its own order
    some = lambda images: images.reshape(len(images), -1)[:, :4]
    each = {"samples": x, "ceiling, training images": train}
    few = lambda images: some(images)[[i * len(images) // 25 for i in range(25)]]
    shares = {name: shares_in_balls(few(images), few(held_out)) for name, images in each.items()}
    assert len({share for pair in shares.values() for share in pair}) == 4
    wanted = {
        "samples": 25,
        "Frechet distance to held out (four pixels): samples": frechet(some(x), some(held_out)),
        "Frechet distance to held out (four pixels): floor, training images": frechet(some(train), some(held_out)),
        "Frechet distance to held out (four pixels): ceiling, shuffled pixels": frechet(some(shuffled), some(held_out)),
        **{
            f"{what} (k = 3, 25 images each) (four pixels): {name}": share
            for name, pair in shares.items()
            for what, share in zip(("precision", "recall"), pair, strict=True)
        },
        "nearest training image: samples, median": np.median(nearest(x, train)),
        "nearest training image: samples, least": np.min(nearest(x, train)),
        "nearest training image: held out, median": np.median(nearest(held_out, train)),
        "nearest training image: held out, least": np.min(nearest(held_out, train)),
    }
    check(found, wanted, 1e-6)
    plain = _measure.measure(drawing, data, n=25, seed=9)[0]
    assert plain["Frechet distance to held out: samples"] == pytest.approx(frechet(x, held_out), rel=1e-6)


def test_images_that_are_in_order_are_taken_from_everywhere():
    labels = np.repeat(np.arange(10), [40, 20, 30, 10, 50, 20, 30, 40, 50, 10])
    counts = np.bincount(_measure.spread(labels, 60))
    np.testing.assert_array_equal(counts, np.bincount(labels) // 5)
    np.testing.assert_array_equal(_measure.spread(labels, 300), labels)


def test_too_few_images_have_no_neighbours():
    train, held_out = images(40, 0.0, 0), images(30, 0.1, 1)
    data = Data(lambda *_: (train, None), (train, None), (held_out, None), None, None)
    names = lambda n: [
        name for name in _measure.measure(lambda *_: images(n, 0.5, 2), data, n=n, seed=0)[0] if "recall" in name
    ]
    assert names(3) == []
    assert len(names(4)) == 2


PIXELS = np.random.default_rng(0).normal(scale=0.5, size=(20, 2, 3, 1)).astype(np.float32)
NATS = np.sum(-2 * PIXELS.astype(float) ** 2 - np.log(np.pi / 2) / 2, axis=(1, 2, 3)) / 6
"""Log density of N(0, 1/4) in nats per pixel, [20]."""


def likelihood(n, taken):
    """What is measured of n images with the denoiser of N(0, 1/4), for which one probe is exact.

    Where it is guided, or is given other labels than those of the items `taken`, it is another denoiser.
    """
    labels = np.arange(20, dtype=np.int32)

    class Known(Denoising):
        def denoiser(self, diffusion, params, cond, stage=-1):
            right = np.array_equal(cond, labels[taken])
            return dj.exact_denoiser(dj.Gaussian(jnp.zeros((2, 3, 1)), 0.25 if right else 1.0), dj.Cosine())

    data = Data(lambda *_: (PIXELS, labels), (-PIXELS, labels), (PIXELS, labels), 20, None)
    family = diffusion_family(Config(), data.samples, build(Config(), 20)._replace(objective=Known()))
    run = types.SimpleNamespace(family=family, params={})
    return _measure.measure_likelihood(run, data, n, 0, dj.Cosine())


def test_likelihood_of_images_is_that_of_their_distribution():
    name = "log density of held out, nats per dimension of x in [-1, 1] (continuous, at logsnr 14)"
    found = likelihood(9, slice(9))
    assert list(found) == [f"{name}: mean", f"{name}: standard error"]
    np.testing.assert_allclose(list(found.values()), [np.mean(NATS[:9]), np.sqrt(np.var(NATS[:9]) / 8)], atol=2e-3)


def test_the_second_of_two_processes_measures_the_second_half(monkeypatch):
    """Of 17 items the first takes nine, the second eight and the last one again, which is not counted."""
    seen = []

    def gather_rows(rows):
        seen.append(rows / 6)
        return np.concatenate([6 * NATS[:9], rows])

    second = types.SimpleNamespace(process_count=lambda: 2, process_index=lambda: 1, random=jax.random)
    monkeypatch.setattr(_measure, "jax", second)
    monkeypatch.setattr(_measure, "gather_rows", gather_rows)
    found = likelihood(17, [9, 10, 11, 12, 13, 14, 15, 16, 16])
    np.testing.assert_allclose(seen, [NATS[[9, 10, 11, 12, 13, 14, 15, 16, 16]]], atol=5e-3)
    assert list(found.values()) == pytest.approx([np.mean(NATS[:17]), np.sqrt(np.var(NATS[:17]) / 16)], abs=2e-3)


def test_no_more_items_than_are_held_out(toy_run, capfd):
    assert "likelihood: 4000 items are held out, got 4001" in refused(capfd, "evaluate", toy_run, "--likelihood", 4001)


@pytest.mark.slow
def test_digits_from_one_end_to_the_other(tmp_path, capfd):
    small = ["--network.channels", 8, "--network.attention", "--network.blocks", 1]
    argv = ["train", "digits", *small, "--steps", 20, "--batch-size", 16, "--sampler.steps", 3, "--out", tmp_path]
    code, out, _ = call(capfd, *argv)  # the bar is on stderr
    assert code == 0
    assert "--label 3" in out
    results = measures(tmp_path)
    (train, _), (held_out, _) = (load_digits(part, holdout=0.2, seed=0) for part in ("train", "test"))
    of = "Frechet distance to held out"
    assert results[f"{of}: floor, training images"] == pytest.approx(frechet(train, held_out), rel=1e-4)
    # The shuffled ones have independent pixels of one mean and variance in each image: ten times as far, and more.
    assert 10 * results[f"{of}: floor, training images"] < results[f"{of}: ceiling, shuffled pixels"]
    least, median = (results[f"nearest training image: held out, {name}"] for name in ("least", "median"))
    distances = nearest(held_out, train)
    assert (least, median) == pytest.approx((np.min(distances), np.median(distances)), rel=1e-6)
    done(capfd, "sample", tmp_path, "--label", 3, "--n", 4, "--out", tmp_path / "threes.png")
