"""The training loop: batches in, a trained state out, and a run that can be interrupted anywhere.

    source(seed, n, size) --> put_batch --> step --> state, metrics      n = state.step: the position in the data
       in a thread, a step ahead              |         |
                                   every few steps      +-- every so often and at the end --> Checkpoints
                                   metrics.jsonl, watchers      draw(step, state)

Metrics stay on the device until they are shown, so only the log and the checkpoints wait for a step; the host is at
most one step ahead of the devices. Metrics of every step enter the log, and skipped steps are counted.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from diffjax._numbers import checked_numbers
from diffjax.data import prefetch
from diffjax.training._layouts import Layout
from diffjax.training._log import OWN
from diffjax.training._mesh import check_divides
from diffjax.training._monitor import Monitor, Trace, Watch
from diffjax.training._saving import Saving, check_parameters, passes, too_many_skipped
from diffjax.training._signals import Stopped, handle_signals as handling_signals, no_stop_signal
from diffjax.training._snapshots import Snapshots
from diffjax.training._state import TrainState
from diffjax.training.checkpoint._store import Checkpoints


@checked_numbers
def train(
    state: TrainState,
    layout: Layout,
    source: Callable[..., PyTree],
    *,
    steps: int,
    batch_size: int,
    seed: int,
    placed: bool = False,
    checkpoints: Checkpoints | None = None,
    save_every: int | None = 1000,
    save_seconds: float | None = None,
    snapshots: Snapshots | None = None,
    log: str | Path | None = None,
    log_every: int = 50,
    progress: bool = True,
    skip_limit: int = 10,
    watch: Sequence[Watch] = (),
    profile: tuple[int, int, str | Path] | None = None,
    workers: int = 0,
    draw: tuple[int, Callable[[int, TrainState], None]] | None = None,
    handle_signals: bool = False,
) -> TrainState:
    """Trains until `state.step` is `steps`; resuming is calling it with a restored state.

    The batch of step n is `source(seed, n, batch_size)`, and its noise comes from `fold_in(state.key, n)`: on the same
    devices an interrupted and resumed run ends bitwise where an uninterrupted one does. The source is called in a
    thread, one batch ahead. Each of several processes reads its own rows, by `part=(process, processes)`.

    Any error that ends the loop of a single process (of the source, of a watcher, KeyboardInterrupt, a step out of
    memory) saves the newest state before it is raised, with a note of its step. A bar or a line of the log that cannot
    be written is dropped with one warning.

    A step whose loss or gradients are not finite leaves the state unchanged and is counted as `skipped`. After
    `skip_limit` consecutive ones the run ends. That is detected when metrics are fetched, so up to `log_every` - 1
    steps after the last of them; no checkpoint is saved in between, as each waits for the metrics up to its own step.

    Args:
      state: the initial state, arrays [*d]; copied to the devices.
      layout: the step on its devices, from `jit_layout`, `fsdp_layout`, `tensor_layout` or `pmap_layout`. A step, from
        `make_train_step` or your own, must return the metrics `loss` and `skipped` (1 where nothing was updated, else
        0), scalars. It may return more: other scalars are logged as their means; `loss_by_level [k]` with
        `count_by_level [k]` as losses by noise level; NAME/due (`due` for names without /), 1 at steps that made the
        metrics NAME/..., else 0: their means are over those steps. None may have a name of the log's own (`step`, ...).
      source: `(seed, step, size) -> batch`, a pytree of leaves [size, ...], NumPy or JAX; see `diffjax.data.Source`.
      steps: number of updates that the state has had at the end.
      batch_size: samples a step, over all devices.
      seed: passed to `source`.
      placed: True if the state is on the devices already, as `layout.init` and `layout.put_state` return it; it is then
        donated, which saves a copy.
      checkpoints: where to save; without, nothing is saved.
      save_every: steps from one checkpoint to the next; None to save by time only. The last step is always saved.
      save_seconds: seconds from one checkpoint to the next, by the clock of process 0: checked after each step, in
        several processes at each line of the log.
      snapshots: saves averages of the state every `snapshots.every` steps; their folder is not cleared.
      log: a JSONL file: a line every `log_every` steps with step, the mean of each metric since the line before over
        the steps not skipped, the number of `skipped` ones, `loss_by_level/00`, ... where the step returns it,
        images_per_second, step_seconds, of which wait_seconds for data and save_seconds for checkpoints (all three
        mean seconds a step), and device_bytes, the peak memory of a device, where the backend reports it. Numbers that
        are not finite are null. Lines after `state.step` are removed first. A file that does not begin with such a line
        is refused.
      log_every: steps from one line to the next; metrics are fetched from the devices then.
      progress: True to draw a bar.
      skip_limit: number of consecutive skipped steps that ends the run.
      watch: called with (step, the numbers of each line as floats), in process 0; `tensorboard(folder)` is one.
      profile: (first, last, folder): the steps of which `jax.profiler` writes a trace, in process 0.
      workers: processes that read the source (`diffjax.data.prefetch`), where one thread is slower than the step.
      draw: (every, function): `function(step, state)` is called every so many steps, in every process, for example to
        draw samples. The next step donates the state's arrays: copy what you store. Its errors end the run. The log
        then has draw_seconds, too.
      handle_signals: True installs handlers of SIGINT (Ctrl-C), SIGTERM and SIGHUP, and restores the former ones at the
        end, where this is called from the main thread. The first signal then saves within two steps (two calls, of a
        layout that makes several a call) and raises `Stopped`; a second one ends the process at once. Several processes
        stop at the same step, whichever of them got it; all must pass the same value.

    Returns:
      The state after `steps` updates, arrays [*d].

    Raises:
      ValueError: a batch does not divide over the devices, the steps not into calls, a number is out of range, the log
        is another file, the step does not return the metrics that it must, or one has a name of the log's own: before
        anything is compiled.
      NotFinite: too many steps were skipped (they and the items of their batches are named) or a parameter is NaN or
        infinite; checkpoints are as they were.
      Stopped: a signal arrived, with `handle_signals`.
      RuntimeError: the disk has no room for the checkpoints, or one could not be written.
    """
    for name, value in {"steps": steps, "log_every": log_every, "skip_limit": skip_limit}.items():
        if value < 1:
            raise ValueError(f"{name}: at least 1, got {value}")
    if draw is not None and draw[0] < 1:
        raise ValueError(f"draw: (every, function) with every at least 1 is needed, got {draw}")
    check_divides(batch_size, layout.devices)
    saving, trace = Saving(checkpoints, save_every, save_seconds), Trace(profile)
    done = _updates(state)
    saving.check_space(layout.abstract(state))
    firsts = _first_steps(done, steps, layout.steps)
    first, stop = (firsts[0] - 1, firsts[-1] - 1 + layout.steps) if firsts else (0, 0)  # step s sees batch s - 1
    part = jax.process_index(), jax.process_count()
    reading = {"workers": workers, "depth": 1, "each": layout.steps, "put": layout.put_batch}
    monitor = Monitor(
        log,
        done,
        steps,
        batch_size,
        steps_per_call=layout.steps,
        skip_limit=skip_limit,
        progress=progress,
        watch=watch,
    )
    state = state if placed else layout.put_state(state)
    if snapshots is not None and done and passes(range(done - layout.steps + 1, done + 1), snapshots.every):
        snapshots.take(done, layout.get_state(state))  # a run may end between a checkpoint and the snapshot of its step
    with (
        handling_signals() if handle_signals else nullcontext(no_stop_signal) as stop_signal,
        monitor,
        trace,
        prefetch(source, seed, first, batch_size, stop=stop, part=part, **reading) as batches,
        saving.on_error(lambda: (done, layout.get_state(state))),
    ):
        for first in firsts:
            call = range(first, first + layout.steps)  # the numbers of its steps
            trace.before(call)
            with monitor.timed("wait_seconds"):
                batch = next(batches)
            if first == firsts[0]:
                _check_metrics(layout, state, batch)
            state, metrics = layout.step(state, batch)
            done = call[-1]
            monitor.add(metrics)
            trace.after(call, metrics)
            signal = stop_signal()  # once: a signal may arrive between any two lines
            last = signal is not None or call[-1] == steps
            fetch = last or passes(call, log_every)
            save = saving.due(call, last=last, fetch=fetch)
            if fetch or save:
                line = monitor.write(call[-1])
                if len(monitor.skipped) == skip_limit:
                    break
            if save:
                with monitor.timed("save_seconds"):
                    if snapshots is not None:
                        snapshots.wait()  # those before a checkpoint are not made again by a run that resumes from it
                    saving.save(call[-1], layout.get_state(state), line)
            if snapshots is not None and passes(call, snapshots.every):
                check_parameters(call[-1], state)
                snapshots.take(call[-1], layout.get_state(state))
            if draw is not None and signal is None and passes(call, draw[0]):
                with monitor.timed("draw_seconds", "drawing samples"):
                    draw[1](call[-1], layout.get_state(state))
            if signal is not None:
                saving.wait()
                if snapshots is not None:
                    snapshots.wait()
                raise Stopped(call[-1], signal)
        else:
            saving.wait()
            if snapshots is not None:
                snapshots.wait()
            signal = stop_signal(now=True)
            if signal is not None:  # it arrived while the last step was being written
                raise Stopped(steps, signal)
    if len(monitor.skipped) == skip_limit:  # after the prefetching thread, which reads the source, has ended
        raise too_many_skipped(
            monitor.skipped,
            lambda n: source(seed, n, batch_size, **({} if part == (0, 1) else {"part": part})),
            batch_size,
        )
    return layout.get_state(state)


def _check_metrics(layout: Layout, state: TrainState, batch: PyTree) -> None:
    """Raises `ValueError` where the step returns no scalars `loss` and `skipped`, or a metric with a name of the log's.

    The step is traced, as it would be anyway, and not compiled.
    """
    metrics = jax.eval_shape(layout.step, state, batch)[1]
    shape = () if layout.steps == 1 else (layout.steps,)
    missing = [name for name in ("loss", "skipped") if name not in metrics or metrics[name].shape != shape]
    if missing:
        shown = ", ".join(f"{name} {list(leaf.shape)}" for name, leaf in sorted(metrics.items()))
        raise ValueError(
            f"layout: a step's metrics need the scalars loss and skipped (1 where nothing was updated), as of "
            f"`make_train_step`; {' and '.join(missing)}: missing, there are {shown}"
        )
    if taken := sorted(set(OWN) & metrics.keys()):
        raise ValueError(f"layout: a step's metric may not be called {taken[0]!r}, a name of the log's own; rename it")


def _updates(state: TrainState) -> int:
    """The number of updates a state has had, whether it is placed, or sharded over processes, or neither."""
    local = state.step.addressable_data(0) if isinstance(state.step, jax.Array) else state.step
    return int(np.ravel(local)[0])


def _first_steps(done: int, steps: int, steps_per_call: int) -> range:
    """The number of the first step of each call."""
    if steps > done and (steps - done) % steps_per_call:
        raise ValueError(f"steps: {steps - done} more, up to {steps}, do not make whole calls of {steps_per_call} each")
    return range(done + 1, steps + 1, steps_per_call)
