"""Averages of parameters: power functions against sums written out, and any width from snapshots of two."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax import training
from diffjax.training import Snapshots, make_power_ema, power_exponent, reconstruction_weights

WIDTHS = (0.05, 0.1)


def profile(width, n):
    """Weights of params_1 .. params_n in the average of a width, [n], in NumPy."""
    s = np.arange(n + 1) / n
    return np.diff(s ** (power_exponent(width) + 1))


def walk(n, size=20):
    """Parameters that settle while they jitter, [n, size]."""
    rng = np.random.default_rng(0)
    settling = 3 * np.exp(-np.arange(n) / n * 5)[:, None]
    return (1 + settling + np.cumsum(rng.normal(size=(n, size)), 0) / n**0.5).astype(np.float32)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.25])
def test_the_exponent_gives_the_width(width):
    """The standard deviation of the density (g+1) s^g on [0, 1], by its moments."""
    g = power_exponent(width)
    mean, square = (g + 1) / (g + 2), (g + 1) / (g + 3)
    np.testing.assert_allclose(np.sqrt(square - mean**2), width, rtol=1e-9)


def test_a_tracked_average_is_the_sum_of_its_profile():
    """From any start, in one scan; and its weights sum to 1."""
    params = walk(300)
    update = make_power_ema(0.1)
    body = lambda ema, inputs: (update(inputs[0], inputs[1], ema), None)
    inputs = (jnp.arange(300), jnp.asarray(params))
    found = jax.jit(lambda start: jax.lax.scan(body, start, inputs)[0])(jnp.full(20, 1e6))
    np.testing.assert_allclose(found, profile(0.1, 300) @ params, rtol=1e-5)


@pytest.mark.parametrize(("width", "error"), [(0.04, 1e-3), (0.05, 1e-6), (0.07, 2e-4), (0.1, 1e-6), (0.15, 1e-3)])
def test_any_width_from_snapshots_of_two(width, error):
    """Sixteen snapshots of each; the average of the wanted width by its own sum."""
    n, params = 4000, walk(4000).astype(np.float64)
    steps = [*range(250, n + 1, 250)] * 2
    widths = [WIDTHS[0]] * 16 + [WIDTHS[1]] * 16
    snapshots = [profile(w, t) @ params[:t] for t, w in zip(steps, widths, strict=True)]
    found = training.weighted_sum(snapshots, reconstruction_weights(steps, widths, n, width))
    wanted = profile(width, n) @ params
    assert np.linalg.norm(found - wanted) < error * np.linalg.norm(wanted)


def pull(params, batch, context):
    """A loss whose parameters move fast, and jitter."""
    return jnp.mean((params["w"] - batch[0]) ** 2), {}


def jittering(seed, step, size):
    return 1 + np.random.default_rng((seed, step)).normal(size=(size, 5)).astype(np.float32), None


def test_a_run_takes_snapshots_that_make_a_width_it_did_track(tmp_path):
    """Through the loop: three averages in the state, two on disk; the third is made of them, to 1e-3."""
    named = {f"{w:g}": make_power_ema(w) for w in (*WIDTHS, 0.07)} | {"decay": training.make_ema(0.9)}
    tx, params = optax.sgd(0.1), {"w": jnp.full(5, -2.0)}
    layout = training.jit_layout(training.make_train_step(training.Objective(pull, tx), ema=named))
    state = training.state_from_params(jax.random.key(0), params, tx, averages=tuple(named))
    snapshots = Snapshots(tmp_path / "averages", WIDTHS, every=10)
    with training.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        options = {"checkpoints": checkpoints, "snapshots": snapshots, "progress": False}
        state = training.train(state, layout, jittering, steps=200, batch_size=16, seed=0, **options)
    assert snapshots.saved() == [(n, w) for n in range(10, 201, 10) for w in WIDTHS]
    found = snapshots.reconstruct(params, 0.07)
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    tracked, moved = flat(state.ema["0.07"]), flat(state.ema["0.05"])
    assert np.linalg.norm(flat(found) - tracked) < 1e-3 * np.linalg.norm(tracked)
    assert np.linalg.norm(moved - tracked) > 3e-3 * np.linalg.norm(tracked)
    early = snapshots.reconstruct(params, 0.05, step=50)
    assert np.linalg.norm(flat(early) - moved) > 1e-2 * np.linalg.norm(moved)
    np.testing.assert_array_equal(flat(snapshots.reconstruct(params, 0.05, step=55)), flat(early))
    with pytest.raises(FileNotFoundError, match="no snapshot up to step 5"):
        snapshots.reconstruct(params, 0.05, step=5)


class Interrupted(Snapshots):
    """Ends the run at step 20, before the snapshot; those before are written slowly."""

    def take(self, step, state):
        if step == 20:
            raise KeyboardInterrupt
        super().take(step, state)

    def _write(self, step, averages):
        time.sleep(0.2)
        super()._write(step, averages)


def test_a_run_that_ends_between_a_checkpoint_and_a_snapshot_loses_none(tmp_path, monkeypatch):
    named = {f"{w:g}": make_power_ema(w) for w in WIDTHS}
    tx, params = optax.sgd(0.1), {"w": jnp.full(5, -2.0)}
    layout = training.jit_layout(training.make_train_step(training.Objective(pull, tx), ema=named))
    fresh = training.state_from_params(jax.random.key(0), params, tx, averages=tuple(named))
    options = {"steps": 30, "batch_size": 16, "seed": 0, "progress": False}
    whole = Snapshots(tmp_path / "whole", WIDTHS, every=10)
    training.train(fresh, layout, jittering, snapshots=whole, **options)

    cut, on_disk = Interrupted(tmp_path / "cut", WIDTHS, every=10), []
    save = training.Checkpoints.save
    monkeypatch.setattr(
        training.Checkpoints, "save", lambda *args, **given: (on_disk.append(cut.saved()), save(*args, **given))[1]
    )
    with training.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        options |= {"checkpoints": checkpoints, "save_every": 12}
        with pytest.raises(KeyboardInterrupt):
            training.train(fresh, layout, jittering, snapshots=cut, **options)
        assert on_disk == [[(10, w) for w in WIDTHS]] * 2  # at 12, and where it ended
        assert checkpoints.latest() == 20
        resumed = Snapshots(tmp_path / "cut", WIDTHS, every=10)
        training.train(checkpoints.restore(fresh), layout, jittering, snapshots=resumed, **options)
    assert resumed.saved() == whole.saved() == [(n, w) for n in (10, 20, 30) for w in WIDTHS]
    for path in whole.folder.iterdir():
        load = lambda folder, name=path.name: training.load_weights(folder / name, params)["w"]
        np.testing.assert_array_equal(load(resumed.folder), load(whole.folder))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: power_exponent(0.3), "width: .* 0.2887.* got 0.3"),
        (lambda: make_power_ema(0.0), "width: .* got 0.0"),
        (lambda: training.make_train_step(training.Objective(pull, optax.sgd(0.1)), ema={}), "ema: .* none"),
        (lambda: reconstruction_weights([], [], 1, 0.1), "steps: .* got 0 and 0"),
        (lambda: reconstruction_weights([0], [0.1], 1, 0.1), "steps: .* got 0"),
        (lambda: reconstruction_weights([10], [0.1], 11, 0.1), "step: .* 10, got 11"),
        (lambda: Snapshots("x", ()), "widths: .* none"),
        (lambda: Snapshots("x", (0.5,)), "width: .* got 0.5"),
        (lambda: Snapshots("x", (0.1,), every=0), "every: .* got 0"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_an_empty_folder_of_snapshots_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="averages: empty"):
        Snapshots(tmp_path / "averages", WIDTHS).reconstruct({}, 0.05)
