"""Pictures: what is drawn is what was given, and no global state is touched."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import ImageFont

from diffjax import viz

IMAGES = np.random.default_rng(0).uniform(-1, 1, (5, 3, 4, 3)).astype(np.float32)


def test_save_grid_writes_every_pixel_enlarged(tmp_path):
    viz.save_grid(tmp_path / "grid.png", IMAGES, columns=2, gap=0, enlarge=3)
    picture = np.rint(imread(tmp_path / "grid.png")[..., :3] * 255).astype(int)
    assert picture.shape == (3 * 3 * 3, 2 * 4 * 3, 3)
    np.testing.assert_array_equal(picture, picture[::3, ::3].repeat(3, axis=0).repeat(3, axis=1))
    small = picture[::3, ::3]
    for i, image in enumerate(IMAGES):
        row, column = divmod(i, 2)
        cell = small[3 * row : 3 * row + 3, 4 * column : 4 * column + 4]
        np.testing.assert_array_equal(cell, np.rint((image + 1) * 127.5))
    np.testing.assert_array_equal(small[6:, 4:], 0)


def test_save_captioned_writes_each_caption_below_its_image(tmp_path):
    captions = [
        "",
        "a red circle",
        "a red circle above a small blue square and a word toolongforonelineofthepicture",
        "",
        "x",
    ]
    viz.save_captioned(tmp_path / "a.png", IMAGES, captions, columns=2, enlarge=20, lines=2)
    picture = np.rint(imread(tmp_path / "a.png")[..., :3] * 255).astype(int)
    margin, below = 6, 2 * 14
    assert picture.shape == (3 * (3 * 20 + below), 2 * (4 * 20 + margin), 3)
    for i, image in enumerate(IMAGES):
        row, column = i // 2 * (60 + below), i % 2 * (80 + margin)
        pixels = np.rint((image + 1) * 127.5).repeat(20, axis=0).repeat(20, axis=1)
        np.testing.assert_array_equal(picture[row : row + 60, column : column + 80], pixels)
        text = picture[row + 60 : row + 60 + below, column : column + 80 + margin]
        assert np.any(text < 128) == bool(captions[i])
        assert np.all(text[:, 80:] == 255)  # no wider than the image
        assert np.any(text[14:] < 128) == (len(captions[i]) > 20)  # a second line
    np.testing.assert_array_equal(picture[2 * (60 + below) :, 80 + margin :], 255)
    with pytest.raises(ValueError, match="captions: one an image is needed, 5, got 2"):
        viz.save_captioned(tmp_path / "b.png", IMAGES, ["a", "b"])
    with pytest.raises(ValueError, match="lines: at least 1 is needed, got 0"):
        viz.save_captioned(tmp_path / "b.png", IMAGES, captions, lines=0)


def test_a_caption_is_measured_no_further_than_it_is_seen(tmp_path, monkeypatch):
    """A word of thousands of letters, or a book, is cut before it is laid out, letter by letter."""
    measured, of_font = [], ImageFont.FreeTypeFont.getlength

    def getlength(font, text, *args, **kwargs):
        measured.append(len(text))
        return of_font(font, text, *args, **kwargs)

    monkeypatch.setattr(ImageFont.FreeTypeFont, "getlength", getlength)
    save = lambda name, *captions: viz.save_captioned(tmp_path / name, IMAGES[:2], captions, enlarge=10)
    save("short.png", "x" * 100, "a " * 100)
    save("long.png", "x" * 3000, "a " * 3000)
    assert sum(measured) < 50_000
    np.testing.assert_array_equal(imread(tmp_path / "short.png"), imread(tmp_path / "long.png"))


def test_grid_clips_and_repeats_grey(tmp_path):
    grey = np.array([-7.0, -1.0, 0.0, 1.0, 7.0, np.nan]).reshape(1, 2, 3, 1)
    viz.save_grid(tmp_path / "grid.png", grey, gap=0, enlarge=1)
    picture = np.rint(imread(tmp_path / "grid.png")[..., :3] * 255)
    np.testing.assert_array_equal(picture[..., 0], [[0, 0, 128], [255, 255, 0]])
    np.testing.assert_array_equal(picture, picture[..., :1].repeat(3, axis=-1))


def test_sample_grid_draws_the_same_picture():
    ax = viz.sample_grid(IMAGES)
    drawn = ax.images[0].get_array()
    assert drawn.shape == (2 * 3 + 1, 3 * 4 + 2, 3)  # one grey pixel between neighbours
    np.testing.assert_array_equal(drawn[:3, :4], np.rint((IMAGES[0] + 1) * 127.5))
    np.testing.assert_array_equal(drawn[3], 64)


def test_density_and_arrows_put_values_in_their_places():
    ax = viz.density(lambda x: -(x[:, 0] ** 2) - 3 * x[:, 1], extent=(-1, 1, 0, 2), points=9)
    mesh = ax.collections[0]
    height = np.asarray(mesh.get_array()).reshape(9, 9)
    x, y = np.linspace(-1, 1, 9), np.linspace(0, 2, 9)
    np.testing.assert_allclose(height, np.exp(-(x[None, :] ** 2) - 3 * y[:, None]), rtol=1e-5)
    viz.arrows(lambda x: np.asarray(x) * [1, 2], extent=(-1, 1, 0, 2), points=9, ax=ax)
    quiver = ax.collections[1]
    np.testing.assert_allclose(np.reshape(quiver.U, (9, 9)), np.broadcast_to(x, (9, 9)), atol=1e-6)
    np.testing.assert_allclose(np.reshape(quiver.V, (9, 9)), np.broadcast_to(2 * y[:, None], (9, 9)), atol=1e-6)


def test_scatter_and_trajectories_draw_the_points():
    paths = np.random.default_rng(1).normal(size=(6, 4, 2))
    ax = viz.scatter(paths[0], color=np.arange(4), label="start")
    np.testing.assert_allclose(ax.collections[0].get_offsets(), paths[0])
    viz.trajectories(paths, ax=ax)
    for i, line in enumerate(ax.lines):
        np.testing.assert_allclose(line.get_xydata(), paths[:, i])
    ts = np.linspace(1, 0, 6)
    line = viz.trajectories(paths[..., :1], ts).lines[2]
    np.testing.assert_allclose(line.get_xydata(), np.column_stack([ts, paths[:, 2, 0]]))


def test_a_picture_is_read_as_it_was_written(tmp_path):
    for channels, name in ((3, "a.png"), (1, "b.png")):
        viz.save_grid(tmp_path / name, IMAGES[:1, ..., :channels], gap=0, enlarge=1)
        wanted = np.broadcast_to(np.rint((IMAGES[0, ..., :channels] + 1) * 127.5), (3, 4, 3))
        np.testing.assert_array_equal(viz.read_picture(tmp_path / name), wanted)
        assert viz.read_picture(tmp_path / name).dtype == np.uint8


def test_a_loss_curve_is_the_losses_and_their_weighted_mean_around_each_step():
    rng = np.random.default_rng(2)
    steps, losses = np.cumsum(rng.integers(1, 9, 40)), rng.uniform(1, 2, 40)
    weights = np.exp(-np.abs(steps[:, None] - steps) / 12.0)
    mean = lambda values: weights @ values / weights.sum(1)
    for of, scale, wanted in (
        (losses, "linear", mean(losses)),
        (losses - 1.5, "linear", mean(losses - 1.5)),
        (losses**5, "log", np.exp(mean(np.log(losses**5)))),
    ):
        holes = np.insert(of, [3, 9], [np.nan, np.inf])
        ax = viz.loss_curve(np.insert(steps, [3, 9], [0, 0]), holes, smoothing=12.0)
        raw, smooth = (line.get_xydata() for line in ax.lines)
        np.testing.assert_array_equal(raw, np.column_stack([steps, of]))
        np.testing.assert_allclose(smooth, np.column_stack([steps, wanted]), rtol=1e-9)
        assert ax.get_yscale() == scale
    by_default = lambda at: viz.loss_curve(at, losses).lines[1].get_ydata()
    np.testing.assert_allclose(by_default(50 * steps / np.ptp(steps)), by_default(steps), rtol=1e-9)
    assert viz.loss_curve([7], [0.5]).lines[1].get_ydata() == [0.5]


@pytest.mark.parametrize("losses", [[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
def test_the_legend_of_a_loss_curve_covers_no_point(losses):
    ax = viz.loss_curve([1, 2, 3], losses)
    FigureCanvasAgg(ax.figure).draw()
    box = ax.get_legend().get_window_extent()
    assert not any(box.contains(*point) for point in ax.transData.transform(np.column_stack([[1, 2, 3], losses])))


def test_functions_draw_where_told_and_touch_nothing_global():
    before = dict(matplotlib.rcParams)
    ax = Figure().subplots()
    points = np.zeros((3, 2))
    for draw in (
        lambda ax: viz.sample_grid(IMAGES, ax=ax),
        lambda ax: viz.scatter(points, ax=ax),
        lambda ax: viz.density(lambda x: x[:, 0], points=3, ax=ax),
        lambda ax: viz.arrows(lambda x: x, points=3, ax=ax),
        lambda ax: viz.trajectories(points[None], ax=ax),
        lambda ax: viz.loss_curve([1, 2, 3], [3.0, 2.0, 1.0], ax=ax),
    ):
        assert draw(ax) is ax
        assert isinstance(draw(None), Axes)
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_pictures_refuse_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"images: .* \(3, 4, 3\)"):
        viz.sample_grid(IMAGES[0])
    with pytest.raises(ValueError, match=r"columns: .* 0"):
        viz.sample_grid(IMAGES, columns=0)
    with pytest.raises(ValueError, match=r"enlarge: .* 0"):
        viz.save_grid(tmp_path / "x.png", IMAGES, enlarge=0)
    with pytest.raises(ValueError, match="ts: "):
        viz.trajectories(np.zeros((3, 2, 1)))
    with pytest.raises(ValueError, match="paths: "):
        viz.trajectories(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"losses: .*\(2,\) and \(3,\)"):
        viz.loss_curve([1, 2, 3], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"losses: .* none"):
        viz.loss_curve([1, 2], [np.nan, np.inf])
    with pytest.raises(ValueError, match=r"smoothing: .* 0"):
        viz.loss_curve([1, 2], [1.0, 2.0], smoothing=0)
    with pytest.raises(ValueError, match="extent"):
        viz.density(lambda x: x[:, 0], extent=(1, 0, 0, 1))
    with pytest.raises(ValueError, match=r"points: .* 1"):
        viz.arrows(lambda x: x, points=1)
