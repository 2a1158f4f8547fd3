"""Training against closed forms, and over devices: the same gradients, the same noise, the same end after a cut."""

import itertools
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training_toy as toy
from training_toy import logged, run

from diffjax.process import normal_like, sample_keys
from diffjax.training import (
    Checkpoints,
    NotFinite,
    Objective,
    Stopped,
    TrainState,
    check_parameters,
    data_mesh,
    handle_signals,
    jit_layout,
    make_ema,
    make_train_step,
    pmap_layout,
    replicate,
    shard_batch,
    split_batch,
    state_from_params,
    tensorboard,
    unreplicate,
)

DEVICES = 8
needs_devices = pytest.mark.skipif(jax.device_count() < DEVICES, reason="needs 8 devices")
frozen = lambda step, params, ema: ema


def layouts(loss, tx):
    """The same step on one device, on eight by jit and on eight by pmap."""
    whole, pieces = (
        make_train_step(Objective(loss, tx), ema=frozen),
        make_train_step(Objective(loss, tx), ema=frozen, axis_name="data"),
    )
    one = jit_layout(whole, data_mesh(jax.devices()[:1]))
    return {"one": one, "jit": jit_layout(whole), "pmap": pmap_layout(pieces)}


def one_step(layout, state, batch):
    """The ordinary state and metrics after one step of a layout."""
    placed, metrics = layout.step(layout.put_state(state), layout.put_batch(batch))
    return jax.device_get(layout.get_state(placed)._replace(key=None)), metrics


# The step


@needs_devices
@pytest.mark.parametrize("name", ["jit", "pmap"])
@pytest.mark.slow
def test_gradients_do_not_depend_on_the_layout(name):
    tx = optax.sgd(1.0)  # params - new params is the gradient; Adam would hide its scale
    state = toy.fresh_state()._replace(opt_state=tx.init(toy.fresh_state().params))
    found = {}
    for kind in ("one", name):
        after, metrics = one_step(layouts(toy.make_loss(toy.make_network()), tx)[kind], state, toy.source(0, 0, 64))
        grads = jax.tree.map(lambda a, b: np.asarray(a) - b, state.params, after.params)
        found[kind] = grads, {key: np.ravel(value)[0] for key, value in metrics.items()}
    for leaf, other in zip(jax.tree.leaves(found["one"][0]), jax.tree.leaves(found[name][0]), strict=True):
        assert np.linalg.norm(leaf) > 1e-3
        assert np.linalg.norm(leaf - other) <= 1e-5 * np.linalg.norm(leaf)
    assert found["one"][1].keys() == {"loss", "grad_norm", "noise", "skipped"}
    for key, value in found["one"][1].items():
        np.testing.assert_allclose(found[name][1][key], value, rtol=1e-6)


@needs_devices
@pytest.mark.slow
def test_noise_of_each_sample_is_the_same_in_every_layout():
    """Its random bits, shown by uniform numbers, bit for bit. Normal numbers, an inverse error function of them, are
    bitwise the same where programs are compiled as users do, and within 4 ulp where nothing is optimised."""

    # The gradient of sum_i <params[index_i], eps_i>/b is eps/b, row by row: the step itself shows its noise, and
    # dividing by powers of two loses nothing.
    def noise(keys):
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (5,)))(keys)
        return jnp.concatenate([normal_like(keys, uniform), uniform], axis=1)

    def loss(params, batch, context):
        return jnp.sum(params[context.index] * noise(sample_keys(context.key, context.index))) / len(batch), {}

    tx, batch = optax.sgd(1.0), np.zeros((64, 5), np.float32)
    state = state_from_params(jax.random.key(3), jnp.zeros((64, 10)), tx)
    found = {name: -64 * one_step(layout, state, batch)[0].params for name, layout in layouts(loss, tx).items()}
    truth = np.asarray(noise(sample_keys(jax.random.fold_in(state.key, 0), jnp.arange(64))))
    assert len(np.unique(truth)) == truth.size
    optimised = "xla_backend_optimization_level=0" not in os.environ["XLA_FLAGS"]
    for eps in found.values():
        np.testing.assert_array_equal(eps[:, 5:], truth[:, 5:])
        np.testing.assert_array_max_ulp(eps[:, :5], truth[:, :5], maxulp=0 if optimised else 4)


def test_each_step_draws_new_noise():
    loss = lambda params, batch, context: (params.sum() * 0, {"draw": jax.random.normal(context.key)})
    step = jax.jit(make_train_step(Objective(loss, optax.sgd(1.0)), ema=frozen))
    state = state_from_params(jax.random.key(0), jnp.zeros(2), optax.sgd(1.0))
    draws = []
    for n in range(3):
        state, metrics = step(state, np.zeros((4, 1)))
        draws.append(float(metrics["draw"]))
        assert draws[-1] == float(jax.random.normal(jax.random.fold_in(jax.random.key(0), n)))
    assert len(set(draws)) == 3
    assert int(state.step) == 3


def test_optimiser_state_accumulates_as_momentum_says():
    # Constant gradient 1: trace_n = sum_{k<n} 0.9^k, params_n = -lr sum_n trace_n.
    loss = lambda params, batch, context: (params.sum(), {})
    tx = optax.sgd(0.1, momentum=0.9)
    step = jax.jit(make_train_step(Objective(loss, tx), ema=frozen))
    state = state_from_params(jax.random.key(0), jnp.zeros(3), tx)
    for _ in range(5):
        state, metrics = step(state, np.zeros((4, 1)))
    traces = [(1 - 0.9**n) / 0.1 for n in range(1, 6)]
    np.testing.assert_allclose(optax.tree_utils.tree_get(state.opt_state, "trace"), traces[-1], rtol=1e-6)
    np.testing.assert_allclose(state.params, -0.1 * sum(traces), rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], 3**0.5, rtol=1e-6)


def test_step_is_compiled_once():
    traces = []

    def loss(params, batch, context):
        traces.append(None)
        return toy.make_loss(toy.make_network())(params, batch, context)

    layout = toy.make_layout("jit", loss=loss)
    for n in range(3):
        placed = layout.put_state(toy.fresh_state()._replace(step=jnp.asarray(n, jnp.int32)))
        layout.step(placed, layout.put_batch(toy.source(n, n, 64)))
    assert len(traces) == 1


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_an_update_is_taken_where_all_is_finite_and_nowhere_else(monkeypatch, backend):
    """By a branch on a CPU; elsewhere by a selection, which runs here just as well."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    loss = lambda params, batch, context: (params * batch.mean(), {})
    middle = lambda step, params, ema: (params + ema) / 2
    step = jax.jit(make_train_step(Objective(loss, optax.sgd(1.0)), ema=middle))
    state = state_from_params(jax.random.key(0), jnp.array(3.0), optax.sgd(1.0))
    for value, params, average in ((1.0, 2.0, 2.5), (np.nan, 3.0, 3.0)):
        new, metrics = step(state, jnp.full(4, value))
        assert (float(new.params), float(new.ema)) == (params, average)
        assert (int(new.step), bool(metrics["skipped"])) == (1, np.isnan(value))


def test_the_optimiser_s_state_is_where_the_parameters_are():
    device = jax.devices()[1]
    state = state_from_params(jax.random.key(0), jax.device_put({"w": jnp.ones(2)}, device), optax.adam(1.0))
    assert {d for leaf in jax.tree.leaves(state.opt_state) for d in leaf.devices()} == {device}


def test_an_optimiser_may_look_at_values():
    largest = lambda params: float(max(jnp.max(leaf) for leaf in jax.tree.leaves(params)))
    tx = optax.GradientTransformation(lambda params: jnp.full(2, largest(params)), lambda g, s, p=None: (g, s))
    state = state_from_params(jax.random.key(0), {"w": jnp.array([1.0, 7.0])}, tx)
    np.testing.assert_array_equal(state.opt_state, [7.0, 7.0])


def test_only_scalars_of_aux_become_metrics():
    loss = lambda params, batch, context: (params.sum(), {"total": jnp.asarray(context.total), "rows": context.index})
    state = state_from_params(jax.random.key(0), jnp.zeros(3), optax.sgd(1.0))
    _, metrics = make_train_step(Objective(loss, optax.sgd(1.0)), ema=frozen)(state, (np.zeros((6, 2)), np.zeros(6)))
    assert metrics.keys() == {"loss", "grad_norm", "total", "skipped"}
    assert metrics["total"] == 6


def test_batch_without_a_common_axis_is_refused():
    step = make_train_step(toy.make_objective(), ema=frozen)
    with pytest.raises(ValueError, match=r"batch: .* shapes \[\(4, 8\), \(3,\)\]"):
        step(toy.fresh_state(), (np.zeros((4, 8)), np.zeros(3, int)))


# The moving average


def test_ema_closed_form():
    # With params constant at 1 from ema 0 the error is the product of the factors: d^n, or by the warm-up
    # prod (1 + k)/(10 + k) = 9! n!/(n + 9)!.
    one, zero = {"w": jnp.ones(2)}, {"w": jnp.zeros(2)}
    constant, warm = make_ema(0.9, warmup=False), make_ema(0.9999)
    a = b = zero
    for n in range(12):
        a, b = constant(jnp.asarray(n), one, a), warm(jnp.asarray(n), one, b)
    np.testing.assert_allclose(1 - a["w"], 0.9**12, rtol=1e-5)
    np.testing.assert_allclose(1 - b["w"], 1 / 293930, atol=1e-6)  # 9! 12!/21!
    capped = make_ema(0.5)(jnp.asarray(1000), one, zero)
    np.testing.assert_allclose(capped["w"], 0.5, rtol=1e-6)


def test_ema_weighs_a_moving_parameter():
    ema = make_ema(0.75, warmup=False)
    average = {"w": jnp.zeros((), jnp.bfloat16)}
    for n in range(4):
        average = ema(jnp.asarray(n), {"w": jnp.asarray(float(n), jnp.bfloat16)}, average)
    assert float(average["w"]) == pytest.approx(sum(0.25 * 0.75 ** (3 - n) * n for n in range(4)), rel=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_ema_refuses(decay):
    with pytest.raises(ValueError, match=f"decay: .* got {decay}"):
        make_ema(decay)


# Layouts


@needs_devices
def test_state_given_to_a_layout_survives_donation():
    state = toy.fresh_state()
    for kind in ("jit", "pmap"):
        layout = toy.make_layout(kind)
        placed = layout.put_state(state)
        layout.step(placed, layout.put_batch(toy.source(0, 0, 16)))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(placed.params))
    assert toy.digest(state) == toy.digest(toy.fresh_state())


@needs_devices
def test_replicate_and_split_round_trip():
    state = toy.fresh_state()
    assert toy.digest(unreplicate(replicate(state))) == toy.digest(state)
    x, cond = split_batch(toy.source(0, 0, 16), 8)
    assert (x.shape, cond.shape) == ((8, 2, 8), (8, 2))
    np.testing.assert_array_equal(x.reshape(16, 8), toy.source(0, 0, 16)[0])


@needs_devices
@pytest.mark.parametrize("place", [lambda batch: split_batch(batch, 8), lambda batch: shard_batch(data_mesh(), batch)])
def test_batch_that_does_not_divide_is_named(place):
    with pytest.raises(ValueError, match="batch_size: 12 samples cannot be split evenly over 8 devices"):
        place(toy.source(0, 0, 12))


# The loop


def test_loop_logs_means_and_saves(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        state = run(tmp_path, 20, checkpoints=checkpoints, save_every=8)
        assert checkpoints.latest() == 20
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["16", "20"]
    assert [line["step"] for line in logged(tmp_path)] == [7, 8, 14, 16, 20]
    metrics, times = {"loss", "grad_norm", "noise", "skipped"}, {"step_seconds", "wait_seconds", "save_seconds"}
    assert set(logged(tmp_path)[0]) == {"step", *metrics, *times, "images_per_second"}
    for line in logged(tmp_path):
        assert 0 <= line["wait_seconds"] + line["save_seconds"] <= line["step_seconds"]
        assert line["images_per_second"] * line["step_seconds"] == pytest.approx(64, rel=1e-2)
    assert int(state.step) == 20


def test_logged_loss_is_the_mean_of_the_steps(tmp_path):
    each, mean = tmp_path / "each", tmp_path / "mean"
    for folder, log_every in ((each, 1), (mean, 6)):
        folder.mkdir()
        run(folder, 6, log_every=log_every)
    losses = [line["loss"] for line in logged(each)]
    assert len(losses) == 6
    assert losses[0] > losses[5]
    assert logged(mean)[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-6)


def test_log_holds_no_step_twice_after_a_resume(tmp_path):
    state = run(tmp_path, 14)
    run(tmp_path, 28, state=state)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 35, "lo')  # the process died here
    run(tmp_path, 21, state=state)
    assert [line["step"] for line in logged(tmp_path)] == [7, 14, 21]


@pytest.mark.parametrize("text", ["dear diary\n", '{"loss": 1}\n', "[3]", "\xff\xfe"])
def test_log_that_is_another_file_is_refused_and_kept(tmp_path, text):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"log: .*metrics\.jsonl is not a log of training"):
        run(tmp_path, 3)
    assert log.read_bytes() == text.encode("latin-1")


@pytest.mark.parametrize("text", ["", "{", '{"step": 7, "lo'])
def test_log_whose_first_line_was_cut_short_goes_on(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    run(tmp_path, 3)
    assert [line["step"] for line in logged(tmp_path)] == [3]


def test_nothing_is_left_to_do(tmp_path):
    state = run(tmp_path, 5)
    assert toy.digest(run(tmp_path, 5, state=state)) == toy.digest(state)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("save_every", 0),
        ("save_seconds", 0),
        ("log_every", -1),
        ("batch_size", 0),
        ("skip_limit", 0),
        ("profile", (4, 2, "trace")),
        ("draw", (0, print)),
    ],
)
def test_loop_refuses(tmp_path, name, value):
    with pytest.raises(ValueError, match=rf"{name}: .*{re.escape(str(value))}"):
        run(tmp_path, **{"steps": 3, name: value})
    assert not list(tmp_path.iterdir())


# What is not finite


def spoilt(steps, row=5):
    """The toy's source with a NaN in one row of some batches."""

    def source(seed, step, size):
        x, cond = toy.source(seed, step, size)
        x[row, 2] = np.nan if step in steps else x[row, 2]
        return x, cond

    return source


def test_one_bad_batch_is_skipped_and_counted(tmp_path):
    # By hand: the same steps without the bad one, which only counts.
    layout = toy.make_layout("jit")
    placed = layout.put_state(toy.fresh_state())
    for n in range(8):
        if n == 4:
            placed = placed._replace(step=placed.step + 1)
        else:
            placed, _ = layout.step(placed, layout.put_batch(toy.source(3, n, 64)))
    lines = []
    state = run(tmp_path, 8, source=spoilt({4}), log_every=2, watch=[lambda step, line: lines.append(line)])
    assert toy.digest(state) == toy.digest(placed)
    assert [line["skipped"] for line in logged(tmp_path)] == [0, 0, 1, 0]
    assert all(line["loss"] > 0 for line in logged(tmp_path))
    assert [line["skipped"] for line in lines] == [0, 0, 1, 0]


def test_a_line_of_skipped_steps_has_no_loss(tmp_path):
    lines = []
    run(tmp_path, 4, source=spoilt({2, 3}), log_every=2, watch=[lambda step, line: lines.append(line)])
    assert (logged(tmp_path)[1]["loss"], logged(tmp_path)[1]["skipped"]) == (None, 2)
    assert np.isnan(lines[1]["loss"])


@pytest.mark.parametrize("log_every", [3, 50])
def test_ten_bad_batches_in_a_row_end_the_run(tmp_path, log_every):
    source = spoilt({2, *range(12, 22)})  # steps 3 and 13 to 22
    said = r"10 steps in a row, 13 to 22, .* positions 768 to 1407 of the data; .*positions 773, 837, .*, 1349;"
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with pytest.raises(NotFinite, match=said):
            run(tmp_path, 40, source=source, checkpoints=checkpoints, save_every=5, log_every=log_every)
        assert checkpoints.latest() == 20  # nine in a row are no reason not to save
        kept = checkpoints.restore(toy.fresh_state())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((kept.params, kept.ema)))
    assert toy.digest(kept._replace(step=jnp.int32(12))) == toy.digest(run(tmp_path, 12, source=spoilt({2}), log=None))
    assert logged(tmp_path)[-1]["step"] == {3: 24, 50: 25}[log_every]


def test_nine_bad_batches_in_a_row_do_not_end_the_run(tmp_path):
    run(tmp_path, 24, source=spoilt({*range(2, 11), *range(12, 21)}))
    assert sum(line["skipped"] for line in logged(tmp_path)) == 18


def exploding(params, batch, context):
    """The toy's loss times the cube of a third array in the batch: 1, or 1e30 and an infinite loss."""
    value, aux = toy.make_loss(toy.make_network())(params, batch[:2], context)
    return value * batch[2].mean() ** 3, aux


def test_infinite_losses_of_finite_data_end_the_run(tmp_path):
    factor = lambda step, size: np.full(size, 1e30 if step >= 12 else 1.0, np.float32)
    source = lambda seed, step, size: (*toy.source(seed, step, size), factor(step, size))
    with pytest.raises(NotFinite, match=r"3 steps in a row, 13 to 15, .* these are finite"):
        run(tmp_path, 40, layout=toy.make_layout("jit", loss=exploding), source=source, skip_limit=3)


def test_batches_that_cannot_be_read_again_do_not_hide_the_steps(tmp_path):
    read = set()

    def source(seed, step, size):
        if step in read:
            raise OSError("a disk")
        read.add(step)
        return spoilt({1, 2})(seed, step, size)

    message = "2 steps in a row, 2 to 3, .* positions 64 to 191 of the data; they cannot be read again: a disk.*;"
    with pytest.raises(NotFinite, match=message):
        run(tmp_path, 9, source=source, skip_limit=2, log_every=1)


def test_parameter_that_is_not_finite_is_never_saved(tmp_path):
    # The gradient is finite but the learning rate is not: the loss has not shown it yet.
    loss = lambda params, batch, context: (params["w"].sum(), {})
    tx = optax.sgd(lambda count: jnp.where(count == 3, jnp.inf, 0.1))
    state = state_from_params(jax.random.key(0), {"w": jnp.ones(2)}, tx)
    layout = jit_layout(make_train_step(Objective(loss, tx), ema=make_ema(0.9)))
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(NotFinite, match="step 4: params/w is not finite"):
            run(tmp_path, 4, layout=layout, state=state, checkpoints=checkpoints)
        assert checkpoints.latest() is None


def test_an_optimiser_that_has_lost_its_numbers_is_never_saved():
    state = state_from_params(jax.random.key(0), {"w": jnp.ones(2)}, optax.contrib.reduce_on_plateau())
    assert any(np.isinf(leaf).any() for leaf in jax.tree.leaves(state.opt_state))  # which is a number there
    check_parameters(4, state)
    worse = state._replace(opt_state=jax.tree.map(lambda leaf: leaf * jnp.nan, state.opt_state))
    with pytest.raises(NotFinite, match=r"step 4: opt_state/.* is not finite"):
        check_parameters(4, worse)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_average_that_is_not_finite_is_never_saved(tmp_path, value):
    """Alone: parameters and loss are as they should be."""
    spoil = lambda step, params, ema: jax.tree.map(lambda leaf: jnp.where(step == 3, value, leaf), params)
    loss = lambda params, batch, context: (jnp.sum(params["w"] ** 2), {})
    state = state_from_params(jax.random.key(0), {"w": jnp.ones(2)}, optax.sgd(0.1))
    layout = jit_layout(make_train_step(Objective(loss, optax.sgd(0.1)), ema=spoil))
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(NotFinite, match="step 4: ema/w is not finite"):
            run(tmp_path, 4, layout=layout, state=state, checkpoints=checkpoints, save_every=2)
        assert checkpoints.latest() == 2


@pytest.fixture
def hangups():
    """SIGHUP as it is in a terminal: these tests may run under nohup, which ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_finishes_the_step_and_saves(tmp_path, number, hangups):
    before = signal.getsignal(number)

    def source(seed, step, size):
        if step == 9:
            os.kill(os.getpid(), number)
        return toy.source(seed, step, size)

    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with pytest.raises(Stopped, match="stopped at step") as caught:
            run(tmp_path, 40, source=source, checkpoints=checkpoints, handle_signals=True)
        step = caught.value.step
        assert step in (9, 10)  # the batch of step 10 is read while step 9 runs
        assert caught.value.signal == number
        assert (tmp_path / "checkpoints" / str(step)).is_dir()
        kept = checkpoints.restore(toy.fresh_state())
    assert toy.digest(kept) == toy.digest(run(tmp_path, step))
    assert signal.getsignal(number) is before
    assert isinstance(kept, TrainState)


@pytest.mark.parametrize(("steps", "stopped"), [(40, 5), (4, 4)])
def test_signal_between_any_two_lines_is_not_lost(tmp_path, steps, stopped):
    # It arrives while the log of step 4 is written, after the loop has looked for signals: step 5 is saved, if any.
    def interrupt(step, metrics):
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with pytest.raises(Stopped, match=f"stopped at step {stopped}"):
            run(tmp_path, steps, checkpoints=checkpoints, log_every=1, watch=[interrupt], handle_signals=True)
        assert checkpoints.latest() == stopped


def test_former_handlers_are_restored_and_receive_undelivered_signals(monkeypatch):

    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with handle_signals() as stop_signal:
            assert stop_signal() is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert (stop_signal(), heard) == (signal.SIGTERM, [])
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard == [signal.SIGTERM]
        heard.clear()
        with handle_signals() as stop_signal:
            assert stop_signal() is None
            os.kill(os.getpid(), signal.SIGTERM)  # while the threads of the batches end
            assert heard == []
        assert heard == [signal.SIGTERM]
        # Of several processes another was told first, and all stop for that.
        heard.clear()
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(
            "diffjax.training._signals._MaximumOverProcesses", lambda: lambda number, now: signal.SIGTERM
        )
        with handle_signals() as stop_signal:
            assert stop_signal() == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == []
    finally:
        assert signal.signal(signal.SIGTERM, before) is not before


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM])
def test_a_second_hangup_ends_nothing(hangups, first):
    """A closed terminal sends two within a millisecond, and systemd sends one after SIGTERM."""

    with handle_signals() as stop_signal:
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop_signal() == first
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_plain_numbers_of_a_loss_are_metrics():
    loss = lambda params, batch, context: (jnp.sum(params**2), {"share": 0.5, "n": 3, "on": True})
    tx = optax.sgd(0.1)
    step = make_train_step(Objective(loss, tx), ema=make_ema(0.9))
    _, metrics = jax.eval_shape(step, state_from_params(jax.random.key(0), jnp.ones(2), tx), jnp.ones((4, 1)))
    assert {name: metrics[name].dtype.name for name in ("share", "n", "on")} == {
        "share": "float32",
        "n": "int32",
        "on": "bool",
    }


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_several_processes_get_the_maximum_of_the_previous_call(monkeypatch, backend):
    from diffjax.training._signals import _MaximumOverProcesses

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    maximum = _MaximumOverProcesses()
    assert [maximum(number, now=False) for number in (0, 2, 15, 0)] == [0, 0, 2, 15]
    assert maximum(2, now=True) == 2


# Several steps a call, and batches ahead


@pytest.fixture(scope="module")
def four_a_call():
    return jit_layout(make_train_step(toy.make_objective(), ema=make_ema(0.99)), steps=4)


def test_several_steps_a_call(tmp_path, four_a_call):
    one, four = tmp_path / "one", tmp_path / "four"
    for folder in (one, four):
        folder.mkdir()
    expected = run(one, 24, source=spoilt({5}))
    with Checkpoints(four / "checkpoints") as checkpoints:
        whole = run(four, 24, layout=four_a_call, source=spoilt({5}), checkpoints=checkpoints, save_every=10)
        assert checkpoints.steps() == [12, 20, 24]
        half = checkpoints.restore(toy.fresh_state(), 12)
    for a, b in zip(jax.tree.leaves(expected.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert [line["step"] for line in logged(four)] == [8, 12, 16, 20, 24]
    assert [line["skipped"] for line in logged(four)] == [1, 0, 0, 0, 0]
    mean = np.mean([line["loss"] * n for line, n in zip(logged(four), (7, 4, 4, 4, 4), strict=True)]) * 5 / 23
    steps = (6, 7, 7, 3)
    assert mean == pytest.approx(np.dot([line["loss"] for line in logged(one)], steps) / sum(steps), rel=1e-5)
    assert toy.digest(run(four, 24, layout=four_a_call, source=spoilt({5}), state=half)) == toy.digest(whole)
    with pytest.raises(ValueError, match=r"steps: 12 more, up to 24|steps: 13 more, up to 25, .* of 4 each"):
        run(four, 25, layout=four_a_call, state=half)


def test_ten_skipped_steps_over_several_calls(tmp_path, four_a_call):
    with pytest.raises(NotFinite, match="10 steps in a row, 7 to 16"):
        run(tmp_path, 40, layout=four_a_call, source=spoilt(range(6, 16)))


def test_what_a_source_raises_is_raised_as_it_is(tmp_path):
    def source(seed, step, size):
        if step == 5:
            raise OSError("the cable")
        return toy.source(seed, step, size)

    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with pytest.raises(OSError, match=r"^the cable\nsaved at step 5; the same call continues there$"):
            run(tmp_path, 40, source=source, checkpoints=checkpoints, save_every=5)
        assert checkpoints.latest() == 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("diffjax-prefetch")]


@pytest.mark.slow
def test_source_may_be_read_by_workers(tmp_path, four_a_call):
    pytest.importorskip("grain", reason="the extra `data` is not installed")
    for layout in (toy.make_layout("jit"), four_a_call):
        plain = run(tmp_path, 12, layout=layout, log=None)
        assert toy.digest(run(tmp_path, 12, layout=layout, log=None, workers=2)) == toy.digest(plain)


def test_host_is_one_step_ahead_and_no_more():
    from diffjax.training._monitor import Monitor

    class Metric:
        def __init__(self, step):
            self.step = step

        def block_until_ready(self):
            waited.append(self.step)

    waited = []
    with Monitor(None, 0, 9, 1, steps_per_call=1, skip_limit=10, progress=False, watch=()) as record:
        for step in range(1, 5):
            record.add({"loss": Metric(step), "skipped": 0})
            assert waited == [*range(1, step)]


def test_a_bar_says_what_is_compiled_and_moves_from_the_first_step(tmp_path, monkeypatch):
    """A log of every third step: while a state is drawn, the step that made it may be under way, those before are done.

    What is drawn is the state of its step, and changes nothing.
    """
    seen, drawn, layout = [], [], toy.make_layout("jit")

    class Bar:
        disable = False

        def __init__(self, *, initial, postfix, **options):
            self.n = initial
            seen.append(postfix)

        def update(self, count):
            self.n += count
            seen.append(self.n)

        def set_postfix_str(self, text, refresh=True):
            seen.append(text.split(" ")[0])

        unpause = close = lambda self: None

    def step(state, batch):
        seen.append("step")
        return layout.step(state, batch)

    def draw(step, state):
        drawn.append((step, int(state.step), toy.digest(state)))

    monkeypatch.setattr("diffjax.training._monitor.tqdm", Bar)
    options = {"layout": layout._replace(step=step), "log_every": 3, "progress": True, "draw": (2, draw)}
    state = run(tmp_path, 5, **options)
    begins = ["compiling", "step", "step", "", 0]  # traced once, to see what it returns
    third = ["step", 1, "drawing", "", "step", 2, "loss", 3]
    assert seen == [*begins, *third, "step", 3, "drawing", "loss", "step", 4, "loss", 5]
    assert toy.digest(state) == toy.digest(run(tmp_path, 5, log=None))
    assert drawn == [(n, n, toy.digest(run(tmp_path, n, log=None))) for n in (2, 4)]
    assert logged(tmp_path)[0]["draw_seconds"] > 0
    seen.clear()
    run(tmp_path, 5, state=state, progress=True)
    assert seen == [None]  # nothing is left to be compiled


@pytest.mark.parametrize("kind", ["jit", pytest.param("pmap", marks=needs_devices)])
def test_placed_state_is_used_up(tmp_path, kind):
    layout = toy.make_layout(kind)
    placed = layout.put_state(toy.fresh_state())
    state = run(tmp_path, 3, layout=layout, state=placed, placed=True)
    assert toy.digest(state) == toy.digest(run(tmp_path, 3, layout=layout))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(placed.params))


# When to save, and watching


def test_checkpoints_by_the_clock(tmp_path, monkeypatch):
    # The clock is asked once at the start, once a step and once a save, and ticks each time.
    monkeypatch.setattr("diffjax.training._saving.time", types.SimpleNamespace(monotonic=itertools.count().__next__))
    with Checkpoints(tmp_path / "checkpoints", keep=9) as checkpoints:
        run(tmp_path, 18, checkpoints=checkpoints, save_every=None, save_seconds=5)
        assert checkpoints.steps() == [5, 10, 15, 18]
        assert checkpoints.about(10)["metrics"]["loss"] == logged(tmp_path)[2]["loss"]
    with Checkpoints(tmp_path / "last") as checkpoints:
        run(tmp_path, 18, checkpoints=checkpoints, save_every=None)
        assert checkpoints.steps() == [18]


def by_level(params, batch, context):
    """A loss with times and terms that are known: the batch's."""
    t, terms = batch
    return params["w"] * terms.mean(), {"t": t, "per_sample": terms}


def rising(seed, step, size):
    """Of 64 samples, sample i, at time i/64, costs i; half of them in the second step, twice and at twice the cost."""
    i = np.arange(size, dtype=np.float32) // (step + 1)
    return i / 64, (step + 1) * i


def test_loss_by_level_and_watchers(tmp_path):
    state = state_from_params(jax.random.key(0), {"w": jnp.ones(())}, optax.sgd(0.0))
    layout = jit_layout(
        make_train_step(Objective(by_level, optax.sgd(0.0)), ema=frozen, levels=5), data_mesh(jax.devices()[:1])
    )
    lines, board = [], tensorboard(tmp_path / "board")
    watch = [lambda step, line: lines.append((step, line)), board]
    # 64 samples of time 0 .. 63/64, then of 0, 0, 1/64 .. 31/64, then of both together.
    for steps, log_every in ((1, 1), (2, 2)):
        run(tmp_path, steps, layout=layout, state=state, watch=watch, source=rising, log_every=log_every)
    second = lambda seed, step, size: rising(seed, 1, size)
    run(tmp_path, 1, layout=layout, state=state, watch=watch, source=second)
    board.close()
    both = [(13 * 6 + 26 * 12) / 39, (13 * 19 + 26 * 38) / 39, (13 * 32 + 12 * 57) / 25, 45, 57.5]
    means = [[6, 19, 32, 45, 57.5], both, [12, 38, 57, None, None]]
    assert [step for step, _ in lines] == [1, 2, 1]
    for (_, line), expected in zip(lines, means, strict=True):
        found = [line[f"loss_by_level/{level:02}"] for level in range(5)]
        np.testing.assert_allclose(found, [np.nan if mean is None else mean for mean in expected])
        assert all(isinstance(value, float) for value in line.values())
    assert [logged(tmp_path)[0][f"loss_by_level/{level:02}"] for level in range(5)] == means[2]
    assert ("loss", 31.5) in scalars(tmp_path / "board")
    assert ("loss_by_level/01", 38.0) in scalars(tmp_path / "board")


def scalars(folder):
    """What TensorBoard files hold: records of length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in folder.iterdir():
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found += [(value.tag, value.simple_value) for value in event.summary.value]
            at += size + 16
    return found


@pytest.mark.slow
def test_trace_of_some_steps(tmp_path):
    run(tmp_path, 6, profile=(3, 4, tmp_path / "trace"))
    assert [path for path in (tmp_path / "trace").rglob("*.xplane.pb") if path.stat().st_size > 0]


# New processes


def start(folder, steps, *options):
    """The toy run in a process of its own."""
    here = Path(__file__).parent
    command = [sys.executable, str(here / "helpers" / "training_toy.py"), str(folder), str(steps), *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(here.parent), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Its last line and exit code; nothing may be on stderr."""
    out, err = process.communicate(timeout=300)
    assert err == ""
    return out.splitlines()[-1], process.returncode


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    """The digest of 40 steps in one process with one device."""
    digest, code = finish(start(tmp_path_factory.mktemp("uncut"), 40))
    assert code == 0
    return digest


@pytest.mark.slow
def test_forty_steps_are_twenty_and_a_restart_and_twenty(tmp_path, uncut):
    assert finish(start(tmp_path, 20))[1] == 0
    assert finish(start(tmp_path, 40)) == (uncut, 0)
    assert [line["step"] for line in logged(tmp_path)] == [7, 14, 20, 21, 28, 35, 40]


@needs_devices
@pytest.mark.parametrize("kind", [pytest.param("jit", marks=pytest.mark.slow), "pmap"])
@pytest.mark.slow
def test_the_same_on_eight_devices(tmp_path, kind):
    # The uncut run and the first half are in this process, the second half in another one.
    layout = toy.make_layout(kind)
    whole = run(tmp_path, 40, layout=layout)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        run(tmp_path, 20, layout=layout, checkpoints=checkpoints)
    assert finish(start(tmp_path, 40, "--devices", DEVICES, "--layout", kind)) == (toy.digest(whole), 0)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.relative)])
def test_interrupted_process_saves_and_resumes_bit_for_bit(tmp_path, uncut, number):
    process = start(tmp_path, 40, "--slow", 0.1)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "step 5":
            break
    process.send_signal(number)
    last, code = finish(process)
    assert code == 128 + number
    step = int(last.removeprefix("stopped "))
    assert 4 <= step <= 7  # batch 5 is read while step 5 runs, and two steps are allowed
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(step)]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        state = checkpoints.restore(toy.fresh_state())
    one = jit_layout(
        make_train_step(toy.make_objective(), ema=make_ema(0.99)),
        data_mesh(jax.devices()[:1]),
    )
    assert toy.digest(run(tmp_path, 40, layout=one, state=state)) == uncut


@pytest.mark.slow
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_the_process_at_once(tmp_path, second):
    # The source is stuck, so the step that the first signal waits for never ends.
    process = start(tmp_path, 40, "--slow", 600)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "step 0"
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.send_signal(second)
    assert process.wait(timeout=60) == -second  # on a busy machine; the source is stuck for ten minutes
    process.communicate()
