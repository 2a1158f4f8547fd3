"""Alignment: what is read of pictures against what captions say, by readers whose errors are known."""

import functools
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import call, covers, done

from diffjax import config
from diffjax.cli import Evaluate, _measure
from diffjax.cli._draw import Draw
from diffjax.cli._evaluate import _check_factors
from diffjax.config import FactorReader, OtherGuidance, factor_reader, train_factors
from diffjax.config._factors import _about, real_images
from diffjax.data import EncodedTexts, digit_scenes, shapes
from diffjax.metrics import alignment
from diffjax.networks import Classifier, FactorClassifier, factor_features, read_factors, split_factors

KEY = jax.random.key(0)
MLP = ["--network.name", "mlp", "--network.width", "16", "--network.depth", "1", "--batch-size", "16"]
MLP += ["--sampler.steps", "2", "--samples", "16"]
SMALL = FactorClassifier((2, 4, 3), channels=(4, 8))
X = jax.random.normal(KEY, (5, 8, 6, 3))


# --- the measure ---


def test_shares_are_counted_by_factor_and_together():
    predicted = np.array([[0, 1, 2], [0, 0, 2], [1, 1, 0], [0, 1, 0]])
    expected = np.array([[0, 1, 2], [1, 0, 2], [1, 1, 2], [0, 1, 0]])
    found = alignment(predicted, expected)
    np.testing.assert_array_equal(found.by_factor, [0.75, 1.0, 0.75])
    assert found.share == 10 / 12
    assert found.all_right == 0.5
    assert alignment(jnp.asarray(predicted), predicted)[1:] == (1.0, 1.0)


@pytest.mark.parametrize(
    ("predicted", "expected", "message"),
    [
        (
            np.zeros((2, 3)),
            np.zeros((2, 3), int),
            r"predicted: whole numbers .* got float64 \[2, 3\]",
        ),
        (np.zeros(2, int), np.zeros(2, int), r"predicted: whole numbers \[n, k\] are needed, got int64 \[2\]"),
        (np.zeros((0, 3), int), np.zeros((0, 3), int), r"predicted: .* got int64 \[0, 3\]"),
        (
            np.zeros((2, 3), int),
            np.zeros((1, 3), int),
            r"expected: the shape of predicted, \[2, 3\], .* got \[1, 3\]",
        ),
        (np.zeros((2, 3), int), np.zeros((2, 3), bool), r"expected: whole numbers \[n, k\] are needed, got bool"),
    ],
)
def test_what_is_no_factor_is_named(predicted, expected, message):
    with pytest.raises(ValueError, match=message):
        alignment(predicted, expected)


# --- the classifier ---


def params_of(classifier, x=X):
    """Parameters away from zero, so that all of the network shows."""
    like = jax.eval_shape(classifier.init, KEY, x)["params"]
    leaves, tree = jax.tree.flatten(like)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)])


def test_a_classifier_of_factors_begins_with_all_values_alike():
    np.testing.assert_array_equal(SMALL.apply(SMALL.init(KEY, X), X), np.zeros((5, 9)))


def test_factors_are_the_most_probable_values_of_each():
    params = params_of(SMALL)
    logits = np.asarray(SMALL.apply({"params": params}, X))
    assert logits.shape == (5, 9)
    each = split_factors(jnp.asarray(logits), SMALL.counts)
    np.testing.assert_array_equal(np.concatenate(each, axis=1), logits)
    found = read_factors(SMALL, params, X)
    assert found.dtype == jnp.int32
    for column, (start, end) in zip(found.T, ((0, 2), (2, 6), (6, 9)), strict=True):
        np.testing.assert_array_equal(column, logits[:, start:end].argmax(axis=1))
    features = factor_features(SMALL, params, X)
    kernel, bias = params["logits"]["kernel"], params["logits"]["bias"]
    np.testing.assert_allclose(features @ kernel + bias, logits, rtol=1e-4, atol=1e-4)


def test_places_are_seen_where_a_mean_over_pixels_sees_none():
    """Far from edges an object has the same mean of features wherever it is, but for the coordinates."""
    plain = Classifier(9, channels=(4,))
    x = np.zeros((2, 24, 24, 3), np.float32)
    x[0, 8:11, 8:11], x[1, 13:16, 13:16] = 1, 1
    with_places = FactorClassifier((9,), channels=(4,))
    apart = lambda module: np.ptp(module.apply({"params": params_of(module, x)}, x), axis=0).max()
    assert apart(plain) < 1e-5 < 3e-4 < apart(with_places)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FactorClassifier(()), "counts: at least one factor, and one value of each, is needed"),
        (lambda: FactorClassifier((2, 0)), r"counts: .* got \(2, 0\)"),
        (lambda: FactorClassifier((2,), channels=(3,)), "channels: "),
        (lambda: FactorClassifier((2,), blocks=0), "blocks: at least one a level"),
        (lambda: SMALL.init(KEY, X, None, jnp.zeros(5)), "cond: a classifier takes none"),
        (lambda: SMALL.init(KEY, X[0]), r"x: images \[b, height, width, channels\]"),
    ],
)
def test_what_is_no_classifier_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- readers ---


def test_held_out_scenes_are_those_of_the_test_split():
    for make in (shapes, digit_scenes, functools.partial(shapes, objects=1)):
        np.testing.assert_array_equal(make().held_out().rows, make("test").rows)
        np.testing.assert_array_equal(make("test").held_out().rows, make().rows)
        assert make("all").held_out() is None


class Erring(FactorReader):
    """Knows every picture that it was shown, by its bytes, but reads the first of two sizes wrongly, one in `every`."""

    def show(self, images, factors, every=8):
        for i, (image, row) in enumerate(zip(images, self.scenes.canonical(factors), strict=True)):
            row[0] = 1 - row[0] if i % every == 0 else row[0]
            self.params[image.tobytes()] = row  # in the place of a network's

    def __call__(self, images):
        return np.stack([self.params[image.tobytes()] for image in images]).astype(np.int32)


def chance(factors):
    """The expected shares of factors, and of pictures, that are right by captions of other pictures at random."""
    same = factors[:, None] == factors
    return same.mean(axis=(0, 1)), same.all(axis=-1).mean()


@pytest.fixture
def captioned(tmp_path):
    """Scenes of two shapes with their captions encoded, row i by its number."""
    every = shapes("all", size=8).texts
    rows = np.arange(len(every), dtype=np.float32)[:, None, None]
    EncodedTexts(every, rows, np.ones((len(every), 1), bool), "abc").save(tmp_path / "texts.npz")
    return config.build_data(config.DataConfig("shapes", text=str(tmp_path), size=8, holdout=0.1))


def test_real_images_score_what_the_readers_error_says_and_shuffled_captions_at_chance(captioned):
    """Images of the captions themselves: of those that are trained on, and of combinations that never are."""
    n, scenes = 400, captioned.scenes
    texts, asked = shapes("all", size=8).texts, []

    def draw(n, cond, seed):
        """Real pictures of the captions, a little apart from each other."""
        asked.append((n, seed))
        factors = np.stack([scenes.parse(texts[int(row)]) for row in cond.embedding[:, 0, 0]])
        return scenes.paint(factors) + np.float32(1e-4) * np.arange(n, dtype=np.float32)[:, None, None, None]

    cond, factors = (_measure.proportional_conditions(each, n) for each in (captioned.train[1], captioned.factors))
    x = draw(n, cond, 0)
    np.testing.assert_array_equal([texts[int(i)] for i in cond.embedding[:, 0, 0]], scenes.captions(factors))
    unseen = tuple(_measure.proportional_conditions(each, n) for each in captioned.unseen)
    reader = Erring(scenes, SMALL, {})
    for shown in (real_images(scenes, 2000), (x, factors), (draw(n, unseen[0], 0), unseen[1])):
        reader.show(*shown)
    reader.show(*real_images(scenes.held_out(), 2000), every=4)
    found = _measure.measure_alignment(draw, captioned, lambda: reader, x, 3)
    assert asked[-1] == (n, 3)
    assert len(found) == 36
    for of, rows in (("alignment", factors), ("alignment of held-out combinations", unseen[1])):
        for what in ("samples", "ceiling, real images"):
            wrong = 1 / 4 if (of, what) == ("alignment of held-out combinations", "ceiling, real images") else 1 / 8
            shares = {"factors": 1 - wrong / 7, "all": 1 - wrong, "size": 1 - wrong / 2}
            for kind, share in (shares | dict.fromkeys(("colour", "shape", "relation"), 1.0)).items():
                assert found[f"{of}, {kind} right: {what}"] == pytest.approx(share, abs=2e-3)
        by_factor, every = chance(scenes.canonical(rows))
        # The first of seven factors is read as another than it is in an eighth, of two values.
        by_factor[0] = by_factor[0] * 7 / 8 + (1 - by_factor[0]) / 8
        assert found[f"{of}, factors right: floor, shuffled captions"] == pytest.approx(by_factor.mean(), abs=0.04)
        assert found[f"{of}, all right: floor, shuffled captions"] == pytest.approx(every, abs=0.02)
        colour = by_factor[[1, 4]].mean()
        assert found[f"{of}, colour right: floor, shuffled captions"] == pytest.approx(colour, abs=0.06)
    assert not scenes.is_drawn(unseen[1]).any()


def test_captions_that_are_not_encoded_are_not_drawn(captioned):
    """An encoder that has the captions of training alone."""
    texts = captioned.scenes.texts
    captioned.encoded = EncodedTexts(texts, np.zeros((len(texts), 1, 1), np.float32), np.ones((len(texts), 1), bool))
    assert captioned.unseen is None
    assert config.build_data(config.DataConfig("digits")).factors is None
    alone = config.build_data(config.DataConfig("shapes", conditional=False))
    assert alone.factors is None
    assert alone.unseen is None


def test_what_holds_no_reader_is_named_before_one_is_trained(tmp_path):
    scenes, said = shapes(objects=1, size=4, colours=2), []
    make = lambda folder: factor_reader(scenes, folder, report=said.append, steps=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"folder: the name of a folder is needed, got .*file"):
        make(tmp_path / "file")
    (tmp_path / "factors.json").write_text(json.dumps(_about(scenes)))
    (tmp_path / "weights.safetensors").write_bytes(b"damaged")
    remedy = "cannot be read: .*; remove .*, and classifiers are trained anew"
    with pytest.raises(ValueError, match=rf"folder: .*weights\.safetensors {remedy}"):
        make(tmp_path)
    assert not said
    options, other = Evaluate(run="", factors=str(tmp_path / "file")), SimpleNamespace(factors=None)
    for data, message in (
        (SimpleNamespace(factors=1), "factors: the name of a folder is needed, got '.*file'"),
        (other, r"factors: for runs of shapes and digit_scenes with captions alone, got .*file"),
    ):
        with pytest.raises(ValueError, match=message):
            _check_factors(options, data)
    _check_factors(Evaluate(run=""), other)


@pytest.mark.slow
def test_a_reader_is_kept_and_trained_anew_for_other_scenes(tmp_path):
    scenes, said = shapes(objects=1, size=4, colours=2), []
    make = lambda scenes: factor_reader(scenes, tmp_path / "factors", report=said.append, steps=2)
    x, factors = scenes(0, 0, 7)
    first = make(scenes)
    again = make(shapes("test", objects=1, size=4, colours=2))
    assert len(said) == 1
    np.testing.assert_array_equal(again(x), first(x))
    np.testing.assert_allclose(again.features(x), first.features(x), rtol=1e-6)
    assert first.alignment(x, factors)[1:] == alignment(first(x), scenes.canonical(factors))[1:]
    assert make(shapes(objects=1, size=4, colours=3)).classifier.counts == (2, 3, 3, 5)
    assert len(said) == 2
    (tmp_path / "factors" / "weights.safetensors").unlink()
    assert make(shapes(objects=1, size=4, colours=3)).classifier.counts == (2, 3, 3, 5)
    assert len(said) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("make", "steps", "least"), [(shapes, 900, 0.97), (digit_scenes, 900, 0.9)])
def test_a_reader_reads_real_images(make, steps, least):
    """One object, of combinations and digits that it was not trained on; a little noise does not matter much."""
    reader = train_factors(make(objects=1), steps=steps)
    real = reader.on_real_images()
    assert real.all_right > least
    x, factors = real_images(reader.scenes, 500)
    noise = np.random.default_rng(0).normal(scale=0.05, size=x.shape).astype(np.float32)
    assert reader.alignment(x + noise, factors).all_right > real.all_right - 0.1
    shuffled = reader.alignment(x, np.random.default_rng(0).permutation(factors))
    np.testing.assert_allclose(shuffled.by_factor, chance(factors)[0], atol=0.1)


# --- diffjax evaluate ---


@pytest.mark.slow
@pytest.mark.parametrize(("name", "make", "size"), [("shapes", shapes, 6), ("digit_scenes", digit_scenes, 16)])
@covers("evaluate", "factors")
def test_evaluate_prints_the_alignment_of_what_it_draws(name, make, size, tmp_path, capfd):
    """With the guidance asked for, of a run that has hardly begun: what is printed is what the library reads."""
    pytest.importorskip("tokenizers")
    run, folder = tmp_path / "run", tmp_path / "factors"
    every = make("all", objects=1).texts
    encoder = config.make_text_encoder(tmp_path / "texts", every, size="tiny")
    encoder.encode(every).save(tmp_path / "texts" / "texts.npz")
    scenes = ["--data.objects", 1, "--data.size", size, "--data.text", tmp_path / "texts"]
    assert call(capfd, "train", name, *scenes, *MLP, "--steps", 3, "--out", run)[0] == 0
    found, params = config.load_run(run)
    data = config.build_data(found.config.data)
    reader = train_factors(data.scenes, steps=20)
    reader.save(folder)
    out = done(capfd, "evaluate", run, "--n", 30, "--seed", 4, "--guidance", 7, "--factors", folder)
    printed = {key: float(value) for key, value in re.findall(r"^(alignment.*?) {2,}(\S+)$", out, re.M)}
    kinds = {"shapes": ("size", "colour", "shape", "place"), "digit_scenes": ("digit", "place")}[name]
    assert len(printed) == 6 * (2 + len(kinds))
    draw = Draw(found.family, params, {"guidance": OtherGuidance(scale=7.0)})
    for what, given in {
        "alignment": (data.train[1], data.factors),
        "alignment of held-out combinations": data.unseen,
    }.items():
        cond, factors = (_measure.proportional_conditions(each, 30) for each in given)
        own = reader.alignment(draw(30, cond, 4, silent=True), factors)
        real = reader.on_real_images(scenes=data.scenes if what == "alignment" else data.scenes.held_out())
        for where, each in (("samples", own), ("ceiling, real images", real)):
            assert printed[f"{what}, factors right: {where}"] == pytest.approx(each.share, rel=1e-3)
            assert printed[f"{what}, all right: {where}"] == pytest.approx(each.all_right, rel=1e-3)
            for kind, share in zip(kinds, each.by_factor, strict=True):
                assert printed[f"{what}, {kind} right: {where}"] == pytest.approx(share, rel=1e-3)
    assert not (run / "factors").exists()
