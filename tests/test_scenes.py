"""Scenes: captions and factors are one to one, pictures are what the factors say, what is held out is never drawn."""

import pickle

import numpy as np
import pytest

from diffjax.data import digit_scenes, load_digits, shapes

EVERY = {
    "shapes": lambda **given: shapes(**given),
    "large": lambda **given: shapes(**{"size": 12, "colours": 6, "sizes": 3, "jitter": 1.0} | given),
    "one_shape": lambda **given: shapes(objects=1, **given),
    "digits": lambda **given: digit_scenes(**given),
    "one_digit": lambda **given: digit_scenes(**{"size": 32, "objects": 1, "jitter": 1.0} | given),
}
BACKGROUND = np.float32(-0.9)
RGB = {"red": (0.9, -0.7, -0.7), "green": (-0.7, 0.7, -0.7), "blue": (-0.7, -0.5, 0.9), "yellow": (0.9, 0.8, -0.7)}


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_is_a_function_of_its_position(name):
    source = EVERY[name]()
    x0, factors = source(3, 5, 12)
    assert x0.dtype == np.float32
    assert x0.shape == (12, *source.shape)
    assert factors.dtype == np.int32
    assert factors.shape == (12, len(source.counts)) == (12, len(source.factors))
    assert -1 <= x0.min() < x0.max() <= 1
    source(3, 6, 12), source(4, 5, 12)  # other calls in between change nothing
    for again in (source, pickle.loads(pickle.dumps(source)), EVERY[name]()):
        for mine, other in zip((x0, factors), again(3, 5, 12), strict=True):
            np.testing.assert_array_equal(mine, other)
    assert np.any(source(3, 6, 12)[0] != x0)
    assert np.any(source(4, 5, 12)[0] != x0)
    for count in (2, 3, 12):
        parts = [source.draw(3, 5, 12, part=(i, count)) for i in range(count)]
        for mine, each in zip(source.draw(3, 5, 12), zip(*parts, strict=True), strict=True):
            np.testing.assert_array_equal(np.concatenate(each), mine)
    assert source(0, 0, 1)[0].shape == (1, *source.shape)
    with pytest.raises(ValueError, match="seed"):
        source(-1, 0, 1)


@pytest.mark.parametrize("name", EVERY)
def test_captions_and_factors_are_one_to_one(name):
    source = EVERY[name](split="all")
    assert len(source.rows) == np.prod(source.counts)
    assert len(set(source.texts)) == len(source.texts) == len(source.rows)
    np.testing.assert_array_equal([source.parse(text) for text in source.texts], source.rows)
    text = source.texts[-1]
    np.testing.assert_array_equal(source.parse(f"  {text.upper().replace(' ', '  ')}. "), source.rows[-1])


def test_captions_are_english():
    two, one, digits = shapes(), shapes(objects=1, sizes=3), digit_scenes()
    assert two.captions([[1, 0, 0, 0, 2, 1, 0]]) == ["a red circle above a small blue square"]
    assert one.captions([[2, 3, 2, 0], [0, 1, 0, 2]]) == [
        "a large yellow triangle at the top left",
        "a small green circle in the middle",
    ]
    assert digits.captions([[2, 9, 2], [8, 1, 1]]) == ["a two left of a nine", "an eight below a one"]
    assert two.factors == (
        *("first size", "first colour", "first shape"),
        *("second size", "second colour", "second shape", "relation"),
    )
    assert digit_scenes(objects=1).factors == ("digit", "place")


@pytest.mark.parametrize("name", EVERY)
def test_what_is_held_out_is_never_drawn(name):
    train, test, every = (EVERY[name](split=split) for split in ("train", "test", "all"))
    rows = lambda source: set(map(tuple, source.rows.tolist()))
    assert rows(train).isdisjoint(rows(test))
    assert rows(train) | rows(test) == rows(every)
    combinations = every.grammar.combinations
    assert len(np.unique(test.grammar.combination(test.rows))) == round(0.1 * combinations)
    assert train.is_drawn(train.rows).all()
    assert not train.is_drawn(test.rows).any()
    drawn = np.concatenate([train(0, step, 500)[1] for step in range(2)] if "shape" not in name else [train.rows])
    assert train.is_drawn(drawn).all()
    # Neither does another caption of the same picture, which names the other object first.
    assert not train.is_drawn(test.canonical(test.rows)).any()
    other = EVERY[name](split="test", holdout_seed=1)
    assert rows(other) != rows(test)
    # All words are among those that are trained on.
    np.testing.assert_array_equal([len(np.unique(column)) for column in train.rows.T], train.counts)


def test_pairs_are_held_out_in_all_relations_and_both_orders():
    test = digit_scenes("test")
    pairs = {tuple(sorted(row[:2])) for row in test.rows.tolist()}
    assert len(pairs) == round(0.1 * 55)
    assert len(test.rows) == sum(4 * (1 if a == b else 2) for a, b in pairs)


def test_factors_are_uniform_and_independent():
    source = shapes("all", objects=1, size=1)
    factors = np.concatenate([source(0, step, 4000)[1] for step in range(2)])
    counts = np.unique(factors, axis=0, return_counts=True)[1]
    assert len(counts) == len(source.rows) == 120
    expected = len(factors) / 120
    assert np.sum((counts - expected) ** 2) / expected < 119 + 5 * np.sqrt(2 * 119)  # chi-squared


@pytest.mark.parametrize("objects", [1, 2])
def test_pixels_are_the_factors(objects):
    """Colour inside, background outside, and the exact area, centroid and place of every shape."""
    n = 96
    source = shapes(size=n, objects=objects, sizes=3, jitter=1.0)
    scene = source.draw(0, 0, 30)
    rows = (np.arange(n) + 0.5) / n
    covered = np.zeros((30, n, n), bool)
    for i in range(objects):
        size, colour, shape = scene.factors[:, 3 * i : 3 * i + 3].T
        radius = 0.25 * np.array([0.5, 0.8, 1.0])[size]
        area = np.array([np.pi, np.pi, 2.0])[shape] * radius**2
        centre = scene.centres[:, i]
        assert np.all(centre - radius[:, None] > -1e-9)
        assert np.all(centre + radius[:, None] < 1 + 1e-9)
        at = (centre * n).astype(int)
        rgb = np.float32(list(RGB.values()))[colour]
        np.testing.assert_array_equal(scene.x0[np.arange(30), at[:, 0], at[:, 1]], rgb)
        box = (np.abs(rows[None] - centre[:, :1]) <= radius[:, None] + 1 / n)[:, :, None]
        box = box & (np.abs(rows[None] - centre[:, 1:]) <= radius[:, None] + 1 / n)[:, None]
        covered |= box
        # How much of a pixel is covered, read from the channel in which colour and background differ most.
        channel = np.argmax(np.abs(rgb - BACKGROUND), axis=1)
        value = np.take_along_axis(scene.x0, channel[:, None, None, None], axis=3)[..., 0]
        full = rgb[np.arange(30), channel][:, None, None] - BACKGROUND
        share = np.where(box, (value - BACKGROUND) / full, 0)
        alone = np.ones(30, bool) if objects == 1 else _apart(scene)
        np.testing.assert_allclose(share.mean(axis=(1, 2))[alone], area[alone], rtol=0.03)  # a quarter pixel an edge
        for axis, column in ((2, 0), (1, 1)):
            mean = (share.sum(axis=axis) * rows).sum(1) / share.sum(axis=(1, 2))
            lift = np.where(shape == 2, radius / 3, 0) if column == 0 else 0  # a triangle's centroid
            np.testing.assert_allclose((mean - lift)[alone], centre[alone, column], atol=2e-3)
    assert np.all(scene.x0[~covered] == BACKGROUND)
    if objects == 2:
        difference, relation = scene.centres[:, 0] - scene.centres[:, 1], scene.factors[:, -1]
        for number, (axis, sign) in enumerate(((0, -1), (0, 1), (1, -1), (1, 1))):
            assert np.all(sign * difference[relation == number, axis] > 0)
    else:
        middle = np.array([(0.25, 0.25), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (0.75, 0.75)])
        far = np.abs(scene.centres[:, 0] - middle[scene.factors[:, -1]])
        assert np.all(far <= 0.25 - radius[:, None] + 1e-9)
        assert far.max() > 0.05


def _apart(scene):
    """Scenes whose objects' boxes do not touch, so that each can be measured alone."""
    return np.abs(scene.centres[:, 0] - scene.centres[:, 1]).max(axis=1) > 0.5


def test_pictures_of_any_size_are_of_the_same_scene():
    small, large = shapes(size=10), shapes(size=80)
    mine, other = small.draw(1, 2, 20), large.draw(1, 2, 20)
    for name in ("factors", "centres"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(other, name))
    shrunk = other.x0.reshape(20, 10, 8, 10, 8, 3).mean(axis=(2, 4))
    assert np.abs(shrunk - mine.x0).max() < 1.8 / 4
    assert np.abs(shrunk - mine.x0).mean() < 0.01
    np.testing.assert_array_equal(small.paint(mine.factors, mine.centres), mine.x0)
    still = shapes(jitter=0.0)
    scene = still.draw(0, 0, 8)
    np.testing.assert_array_equal(still.paint(scene.factors), scene.x0)


@pytest.mark.parametrize("name", EVERY)
def test_canonical_factors_are_of_the_same_picture(name):
    source = EVERY[name](split="all")
    rows = source.rows[:: max(1, len(source.rows) // 200)]
    canonical = source.canonical(rows)
    if source.grammar.objects == 2:
        assert set(canonical[:, -1]) == {0, 2}
    np.testing.assert_array_equal(source.paint(canonical), source.paint(rows))
    np.testing.assert_array_equal(source.canonical(canonical), canonical)


@pytest.mark.parametrize("images", ["train", "test"])
def test_digits_are_those_of_the_data_set(images):
    x, labels = load_digits(images)
    source = digit_scenes("all", size=32, images=images, jitter=1.0)
    scene = source.draw(0, 0, 40)
    for i in range(40):
        seen = np.full((32, 32, 1), -1.0, np.float32)
        for digit, item, centre in zip(scene.factors[i], scene.items[i], scene.centres[i], strict=False):
            image = x[labels == digit][item].repeat(2, axis=0).repeat(2, axis=1)
            row, column = np.rint(centre * 32).astype(int) - 8
            place = seen[row : row + 16, column : column + 16]
            np.testing.assert_array_equal(place, -1)  # they do not overlap
            place[:] = image
        np.testing.assert_array_equal(scene.x0[i], seen)
    assert len(np.unique(scene.items)) > 30
    with pytest.raises(ValueError, match="items: there are"):
        source.paint(scene.factors, scene.centres, scene.items + 1000)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shapes("validation"), "split: 'train', 'test' or 'all' .* 'validation'"),
        (lambda: shapes(size=0), "size: at least one pixel is needed, got 0"),
        (lambda: shapes(objects=3), "objects: 1 or 2 are needed, got 3"),
        (lambda: shapes(colours=7), "colours: 2 to 6 are needed, got 7"),
        (lambda: shapes(sizes=1), "sizes: 2 to 3"),
        (lambda: shapes(jitter=1.5), r"jitter: .* 1\.5"),
        (lambda: shapes(holdout=1.0), r"holdout: a share in \[0, 1\) is needed, got 1\.0"),
        (lambda: shapes("test", holdout=0.0), "holdout: 0.0 of 78 combinations of shapes leaves none to test on"),
        (lambda: digit_scenes(size=24), "size: a multiple of 16 is needed, got 24"),
        (lambda: digit_scenes(images="all"), "images: 'train' or 'test' is needed, got 'all'"),
        (lambda: shapes().parse("a purple circle above a red dog"), "has no 'purple', 'dog'"),
        (lambda: shapes().parse("a red circle"), "none of the grammar; one is 'a yellow triangle right of"),
        (lambda: shapes().parse(""), "caption: '' is none of the grammar"),
        (lambda: shapes().parse(3), "caption: a string is needed, got 3"),
        (lambda: shapes().captions([[0, 4, 0, 0, 0, 0, 0]]), r"factors: first colour must be in 0 \.\. 3, got 4"),
        (lambda: shapes().canonical(np.zeros((2, 3), int)), r"factors: whole numbers \[b, 7\] are needed, first size"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
