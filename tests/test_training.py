"""Training against closed forms, and over devices: the same gradients, the same noise, the same end after a cut."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training_toy as toy

from diffjax._arrays import normal_like, sample_keys
from diffjax.training import (
    Checkpoints,
    NotFinite,
    Stopped,
    TrainState,
    data_mesh,
    jit_layout,
    make_ema,
    make_train_step,
    pmap_layout,
    replicate,
    shard_batch,
    split_batch,
    state_from_params,
    train,
    unreplicate,
)

DEVICES = 8
needs_devices = pytest.mark.skipif(jax.device_count() < DEVICES, reason="needs 8 devices")
frozen = lambda step, params, ema: ema


def layouts(loss, tx):
    """The same step on one device, on eight by jit and on eight by pmap."""
    whole, pieces = make_train_step(loss, tx, ema=frozen), make_train_step(loss, tx, ema=frozen, axis_name="data")
    one = jit_layout(whole, data_mesh(jax.devices()[:1]))
    return {"one": one, "jit": jit_layout(whole), "pmap": pmap_layout(pieces)}


def one_step(layout, state, batch):
    """The ordinary state and metrics after one step of a layout."""
    placed, metrics = layout.step(layout.put_state(state), layout.put_batch(batch))
    return jax.device_get(layout.get_state(placed)._replace(key=None)), metrics


# The step


@needs_devices
@pytest.mark.parametrize("name", ["jit", "pmap"])
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
def test_noise_of_each_sample_is_bitwise_the_same_in_every_layout():
    # The gradient of sum_i <params[index_i], eps_i>/b is eps/b, row by row: the step itself shows its noise, and
    # dividing by powers of two loses nothing.
    def loss(params, key, batch, index, total):
        eps = normal_like(sample_keys(key, index), batch)
        return jnp.sum(params[index] * eps) / len(index), {}

    tx, batch = optax.sgd(1.0), np.zeros((64, 5), np.float32)
    state = state_from_params(jax.random.key(3), jnp.zeros((64, 5)), tx)
    found = {name: -64 * one_step(layout, state, batch)[0].params for name, layout in layouts(loss, tx).items()}
    truth = normal_like(sample_keys(jax.random.fold_in(state.key, 0), jnp.arange(64)), jnp.zeros((64, 5)))
    for eps in found.values():
        np.testing.assert_array_equal(eps, np.asarray(truth))


def test_each_step_draws_new_noise():
    loss = lambda params, key, batch, index, total: (params.sum() * 0, {"draw": jax.random.normal(key)})
    step = jax.jit(make_train_step(loss, optax.sgd(1.0), ema=frozen))
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
    loss = lambda params, key, batch, index, total: (params.sum(), {})
    tx = optax.sgd(0.1, momentum=0.9)
    step = jax.jit(make_train_step(loss, tx, ema=frozen))
    state = state_from_params(jax.random.key(0), jnp.zeros(3), tx)
    for _ in range(5):
        state, metrics = step(state, np.zeros((4, 1)))
    traces = [(1 - 0.9**n) / 0.1 for n in range(1, 6)]
    np.testing.assert_allclose(optax.tree_utils.tree_get(state.opt_state, "trace"), traces[-1], rtol=1e-6)
    np.testing.assert_allclose(state.params, -0.1 * sum(traces), rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], 3**0.5, rtol=1e-6)


def test_step_is_compiled_once():
    traces = []

    def loss(params, key, batch, index, total):
        traces.append(None)
        return toy.make_loss(toy.make_network())(params, key, batch, index, total)

    layout = toy.make_layout("jit", loss=loss)
    for n in range(3):
        placed = layout.put_state(toy.fresh_state()._replace(step=jnp.asarray(n, jnp.int32)))
        layout.step(placed, layout.put_batch(toy.source(n, n, 64)))
    assert len(traces) == 1


def test_only_scalars_of_aux_become_metrics():
    loss = lambda params, key, batch, index, total: (params.sum(), {"total": jnp.asarray(total), "rows": index})
    state = state_from_params(jax.random.key(0), jnp.zeros(3), optax.sgd(1.0))
    _, metrics = make_train_step(loss, optax.sgd(1.0), ema=frozen)(state, (np.zeros((6, 2)), np.zeros(6)))
    assert metrics.keys() == {"loss", "grad_norm", "total", "skipped"}
    assert metrics["total"] == 6


def test_batch_without_a_common_axis_is_refused():
    step = make_train_step(toy.make_loss(toy.make_network()), toy.make_tx(), ema=frozen)
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


def test_ema_weighs_a_moving_parameter_and_keeps_dtypes():
    ema = make_ema(0.75, warmup=False)
    average = {"w": jnp.zeros((), jnp.bfloat16)}
    for n in range(4):
        average = ema(jnp.asarray(n), {"w": jnp.asarray(float(n), jnp.bfloat16)}, average)
    assert average["w"].dtype == jnp.bfloat16
    assert float(average["w"]) == pytest.approx(sum(0.25 * 0.75 ** (3 - n) * n for n in range(4)), rel=0.02)


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


def run(folder, steps, *, layout=None, source=toy.source, state=None, **options):
    """`train` on the toy, in a folder."""
    defaults = {"batch_size": 64, "seed": 3, "log": folder / "metrics.jsonl", "log_every": 7, "progress": False}
    state = toy.fresh_state() if state is None else state
    return train(state, layout or toy.make_layout("jit"), source, steps=steps, **{**defaults, **options})


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_loop_logs_means_and_saves(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        state = run(tmp_path, 20, checkpoints=checkpoints, save_every=8)
        assert checkpoints.latest() == 20
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["16", "20"]
    assert [line["step"] for line in logged(tmp_path)] == [7, 8, 14, 16, 20]
    assert set(logged(tmp_path)[0]) == {"step", "loss", "grad_norm", "noise", "skipped", "images_per_second"}
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


@pytest.mark.parametrize("text", ["dear diary\n", '{"loss": 1}\n', "[3]", "\n", "\xff\xfe"])
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


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("save_every", 0), ("log_every", -1), ("batch_size", 0)])
def test_loop_refuses(tmp_path, name, value):
    with pytest.raises(ValueError, match=rf"{name}: .*{value}"):
        run(tmp_path, **{"steps": 3, name: value})
    assert not list(tmp_path.iterdir())


def test_nan_data_is_named_before_a_step_is_made(tmp_path):
    def source(seed, step, size):
        x, cond = toy.source(seed, step, size)
        x[5, 2] = np.nan if step == 4 else x[5, 2]
        return x, cond

    with pytest.raises(ValueError, match=r"batch\[0\] of step 4 holds nan"):
        run(tmp_path, 20, source=source)


def exploding(params, key, batch, index, total):
    """The toy's loss times the cube of a third array in the batch: 1, or 1e30 and an infinite loss."""
    value, aux = toy.make_loss(toy.make_network())(params, key, batch[:2], index, total)
    return value * batch[2].mean() ** 3, aux


def test_loss_that_is_not_finite_stops_the_run_and_leaves_checkpoints(tmp_path):
    factor = lambda step, size: np.full(size, 1e30 if step == 12 else 1.0, np.float32)
    source = lambda seed, step, size: (*toy.source(seed, step, size), factor(step, size))
    layout = toy.make_layout("jit", loss=exploding)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with pytest.raises(NotFinite, match="step 13: loss is inf"):
            run(tmp_path, 40, layout=layout, source=source, checkpoints=checkpoints, save_every=5)
        assert checkpoints.latest() == 10
        kept = checkpoints.restore(toy.fresh_state())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((kept.params, kept.ema)))
    assert [line["step"] for line in logged(tmp_path)] == [5, 7, 10]


def test_parameter_that_is_not_finite_is_never_saved(tmp_path):
    # The gradient is finite but the learning rate is not: the loss has not shown it yet.
    loss = lambda params, key, batch, index, total: (params["w"].sum(), {})
    tx = optax.sgd(lambda count: jnp.where(count == 3, jnp.inf, 0.1))
    state = state_from_params(jax.random.key(0), {"w": jnp.ones(2)}, tx)
    layout = jit_layout(make_train_step(loss, tx, ema=make_ema(0.9)))
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(NotFinite, match="step 4: parameter w is not finite"):
            run(tmp_path, 4, layout=layout, state=state, checkpoints=checkpoints)
        assert checkpoints.latest() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_finishes_the_step_and_saves(tmp_path, number):
    before = signal.getsignal(number)

    def source(seed, step, size):
        if step == 9:
            os.kill(os.getpid(), number)
        return toy.source(seed, step, size)

    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with pytest.raises(Stopped, match="stopped at step 10") as caught:
            run(tmp_path, 40, source=source, checkpoints=checkpoints)
        assert (caught.value.step, caught.value.signal) == (10, number)
        kept = checkpoints.restore(toy.fresh_state())
    assert toy.digest(kept) == toy.digest(run(tmp_path, 10))
    assert signal.getsignal(number) is before
    assert isinstance(kept, TrainState)


def test_signal_between_any_two_lines_is_not_lost(tmp_path, monkeypatch):
    # It comes while the log of step 4 is written, after the loop has looked for signals: step 5 is saved, then.
    from diffjax.training import _loop

    write = _loop._Record.write

    def interrupted(self, step):
        write(self, step)
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(_loop._Record, "write", interrupted)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with pytest.raises(Stopped, match="stopped at step 5"):
            run(tmp_path, 40, checkpoints=checkpoints, log_every=1)
        assert checkpoints.latest() == 5


# New processes


def start(folder, steps, *options):
    """The toy run in a process of its own."""
    here = Path(__file__).parent
    command = [sys.executable, str(here / "training_toy.py"), str(folder), str(steps), *map(str, options)]
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
def test_the_same_on_eight_devices(tmp_path, kind):
    # The uncut run and the first half are in this process, the second half in another one.
    layout = toy.make_layout(kind)
    whole = run(tmp_path, 40, layout=layout)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        run(tmp_path, 20, layout=layout, checkpoints=checkpoints)
    assert finish(start(tmp_path, 40, "--devices", DEVICES, "--layout", kind)) == (toy.digest(whole), 0)


@pytest.mark.slow
def test_interrupted_process_saves_and_resumes_bit_for_bit(tmp_path, uncut):
    process = start(tmp_path, 40, "--slow", 0.1)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "step 5":
            break
    process.send_signal(signal.SIGINT)
    last, code = finish(process)
    assert code == 130
    step = int(last.removeprefix("stopped "))
    assert 6 <= step < 40
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(step)]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        state = checkpoints.restore(toy.fresh_state())
    one = jit_layout(
        make_train_step(toy.make_loss(toy.make_network()), toy.make_tx(), ema=make_ema(0.99)),
        data_mesh(jax.devices()[:1]),
    )
    assert toy.digest(run(tmp_path, 40, layout=one, state=state)) == uncut
