"""The loop: batches in, a trained state out, and a run that can be cut anywhere.

    source(seed, n, size) --> put_batch --> step --> state, metrics      n = state.step: the position in the data
       in a thread, a step ahead              |         |
                                   every few steps      +-- every so often and at the end --> Checkpoints
                                   metrics.jsonl, bar, watchers

Metrics stay on the device until they are shown, so nothing waits for a step but the log and the checkpoints; the host
is one step ahead of the devices, no more. Metrics are kept for every step, and steps that were skipped are counted.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from diffjax.training._batches import Prefetch, Source, placed_batches, reader
from diffjax.training._checkpoint import Checkpoints
from diffjax.training._finite import check_parameters, too_many_skipped
from diffjax.training._mesh import check_divides
from diffjax.training._record import Record
from diffjax.training._saves import Saves, passes
from diffjax.training._sharding import Layout
from diffjax.training._signals import Stopped, hear_signals
from diffjax.training._snapshots import Snapshots
from diffjax.training._state import TrainState
from diffjax.training._watch import Trace, Watch


def train(
    state: TrainState,
    layout: Layout,
    source: Source,
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
    prefetch: Prefetch | None = None,
) -> TrainState:
    """Trains until `state.step` is `steps`; resuming is calling it with a restored state.

    The batch of step n is `source(seed, n, batch_size)`, and its noise comes from `fold_in(state.key, n)`: on the same
    devices a run that was cut and resumed ends bitwise where an uncut one does. The source is called in a thread, one
    batch ahead. Of several processes each asks for its rows, by `part=(process, processes)`.

    Ctrl-C, SIGTERM and SIGHUP save within two steps (two calls, of a layout that makes several a call) and raise
    `Stopped`; a second one ends the process at once. Several processes stop together, whichever of them got it. (Only
    where this is called from the main thread, which is where Python hears signals.)

    Whatever else ends the loop of one process alone (a source that raises, a watcher, a step out of memory) saves the
    newest state there is before it is raised, with a note of its step. A bar or a line of the log that cannot be
    written is dropped with one warning.

    A step whose loss or gradients are not finite leaves the state as it was and is counted as `skipped`. After
    `skip_limit` of them in a row the run ends. That is seen when metrics are fetched, so up to `log_every` - 1 steps
    after the last of them; no checkpoint comes between, as each waits for the metrics up to its own step.

    Args:
      state: where to begin; copied to the devices.
      layout: the step on its devices, from `jit_layout`, `fsdp_layout`, `tensor_layout` or `pmap_layout`.
      source: `(seed, step, size) -> batch`, a pytree of leaves [size, ...], NumPy or JAX; see `diffjax.data.Source`.
      steps: how many updates the state shall have had in the end.
      batch_size: samples a step, over all devices.
      seed: given to `source`.
      placed: whether the state is on the devices already, as `layout.init` and `layout.put_state` return it; it is then
        used up, which saves a copy.
      checkpoints: where to save; nothing is saved without.
      save_every: steps from one checkpoint to the next; None for none but by time. The last step is always saved.
      save_seconds: seconds from one checkpoint to the next. Process 0 looks at its clock: after each step, or of
        several processes at each line of the log.
      snapshots: takes averages of the state every `snapshots.every` steps; their folder is not cleared.
      log: a JSONL file: a line every `log_every` steps with step, the mean of each metric since the line before over
        the steps not skipped, how many were `skipped`, `loss_by_level/00`, ... where the step tells it,
        images_per_second, step_seconds, of which wait_seconds for data and save_seconds for checkpoints (all three
        mean seconds a step), and device_bytes, the most that a device has held, where the backend tells. What is not
        finite is null. Lines beyond `state.step` are removed first. A file that does not begin with such a line is
        refused.
      log_every: how often metrics are fetched from the devices.
      progress: whether to draw a bar.
      skip_limit: how many steps in a row may be skipped before the run ends.
      watch: called with (step, the numbers of each line as floats), in process 0; `tensorboard(folder)` is one.
      profile: (first, last, folder): the steps of which `jax.profiler` writes a trace, in process 0.
      prefetch: what to read the source by, such as `functools.partial(diffjax.data.prefetch, workers=4)`.

    Returns:
      The state after `steps` updates.

    Raises:
      ValueError: a batch does not divide over the devices, the steps not into calls, a number is out of range, or the
        log is another file.
      NotFinite: too many steps were skipped (they and the items of their batches are named) or a parameter is NaN or
        infinite; checkpoints are as they were.
      Stopped: a signal came.
      RuntimeError: the disk has no room for the checkpoints, or one could not be written.
    """
    for name, value in {"steps": steps, "log_every": log_every, "skip_limit": skip_limit}.items():
        if value < 1:
            raise ValueError(f"{name}: at least 1, got {value}")
    check_divides(batch_size, layout.devices)
    saves, trace = Saves(checkpoints, save_every, save_seconds), Trace(profile)
    done = _updates(state)
    saves.check_space(layout.abstract(state))
    firsts = _firsts(done, steps, layout.steps)
    record = Record(
        log, done, steps, batch_size, each=layout.steps, skip_limit=skip_limit, progress=progress, watch=watch
    )
    state = state if placed else layout.put_state(state)
    with (
        hear_signals() as asked,
        record,
        trace,
        placed_batches(source, seed, batch_size, firsts, layout, prefetch) as batches,
        saves.rescue(lambda: (done, layout.get_state(state))),
    ):
        for first in firsts:
            call = range(first, first + layout.steps)  # the numbers of its steps
            trace.before(call)
            with record.spends("wait_seconds"):
                batch = next(batches)
            state, metrics = layout.step(state, batch)
            done = call[-1]
            record.add(metrics)
            trace.after(call, metrics)
            stop = asked()  # once: a signal may come between any two lines
            last = stop is not None or call[-1] == steps
            fetch = last or passes(call, log_every)
            save = saves.due(call, last=last, fetch=fetch)
            if fetch or save:
                line = record.write(call[-1])
                if len(record.skipped) == skip_limit:
                    break
            if save:
                with record.spends("save_seconds"):
                    saves.save(call[-1], layout.get_state(state), line)
            if snapshots is not None and passes(call, snapshots.every):
                check_parameters(call[-1], state)
                snapshots.take(call[-1], layout.get_state(state))
            if stop is not None:
                saves.wait()
                if snapshots is not None:
                    snapshots.wait()
                raise Stopped(call[-1], stop)
        else:
            saves.wait()
            if snapshots is not None:
                snapshots.wait()
            late = asked(now=True)
            if late is not None:  # it came while the last step was being written
                raise Stopped(steps, late)
    if len(record.skipped) == skip_limit:  # now that nobody else reads the source
        raise too_many_skipped(record.skipped, reader(source, seed, batch_size), batch_size)
    return layout.get_state(state)


def _updates(state: TrainState) -> int:
    """The number of updates a state has had, whether it is placed, or spread over processes, or neither."""
    here = state.step.addressable_data(0) if isinstance(state.step, jax.Array) else state.step
    return int(np.ravel(here)[0])


def _firsts(done: int, steps: int, each: int) -> range:
    """The number of the first step of each call."""
    if steps > done and (steps - done) % each:
        raise ValueError(f"steps: {steps - done} more, up to {steps}, do not make whole calls of {each} each")
    return range(done + 1, steps + 1, each)
