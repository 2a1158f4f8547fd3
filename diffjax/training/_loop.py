"""The loop: batches in, a trained state out, and a run that can be cut anywhere.

    source(seed, n, size) --> put_batch --> step --> state, metrics      n = state.step: the position in the data
                                              |         |
                                   every few steps      +-- every so often and at the end --> Checkpoints
                                   metrics.jsonl, bar

Metrics stay on the device until they are shown, so nothing waits for a step but the log and the checkpoints. They are
kept for every step, and a loss that is not finite is named by the step it appeared in.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffjax.training._checkpoint import Checkpoints
from diffjax.training._sharding import Layout, check_divides
from diffjax.training._state import TrainState

Source = Callable[[int, int, int], Any]


class Stopped(KeyboardInterrupt):
    """Raised by `train` when a signal ended it, after the step was finished and saved.

    Attributes:
      step: how many updates the state that was saved has had.
      signal: SIGINT (Ctrl-C) or SIGTERM.
    """

    def __init__(self, step: int, number: int):
        super().__init__(f"stopped at step {step} by {signal.Signals(number).name}")
        self.step, self.signal = step, number


class NotFinite(ArithmeticError):
    """Raised by `train` when a loss, a gradient or a parameter is NaN or infinite; nothing was saved since."""


def train(
    state: TrainState,
    layout: Layout,
    source: Source,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    checkpoints: Checkpoints | None = None,
    save_every: int = 1000,
    log: str | Path | None = None,
    log_every: int = 50,
    progress: bool = True,
) -> TrainState:
    """Trains until `state.step` is `steps`; resuming is calling it with a restored state.

    The batch of step n is `source(seed, n, batch_size)`, and its noise comes from `fold_in(state.key, n)`: on the same
    devices a run that was cut and resumed ends bitwise where an uncut one does.

    Ctrl-C and SIGTERM finish the step, save and raise `Stopped`; a second one takes effect at once. (Only where this
    is called from the main thread, which is where Python hears signals.)

    Args:
      state: where to begin.
      layout: the step on its devices, from `jit_layout` or `pmap_layout`.
      source: `(seed, step, size) -> batch`, a pytree of leaves [size, ...], NumPy or JAX.
      steps: how many updates the state shall have had in the end.
      batch_size: samples a step, over all devices.
      seed: given to `source`.
      checkpoints: where to save; nothing is saved without.
      save_every: steps from one checkpoint to the next; the last step is always saved.
      log: a JSONL file: a line every `log_every` steps with step, the mean of each metric since the line before, and
        images_per_second. Lines beyond `state.step` are removed first.
        A file that does not begin with such a line is refused.
      log_every: how often metrics are fetched from the devices.
      progress: whether to draw a bar.

    Returns:
      The state after `steps` updates.

    Raises:
      ValueError: a batch does not divide over the devices, a number is out of range, the data are not finite, or the
        log is another file.
      NotFinite: a loss, gradient norm or parameter is NaN or infinite; checkpoints are as they were.
      Stopped: a signal came.
      RuntimeError: a checkpoint could not be written.
    """
    for name, value in {"steps": steps, "save_every": save_every, "log_every": log_every}.items():
        if value < 1:
            raise ValueError(f"{name}: at least 1, got {value}")
    check_divides(batch_size, layout.devices)
    done = int(state.step)
    record = _Record(log, done, steps, batch_size, progress)
    placed = layout.put_state(state)
    with _signals() as received, record:
        for n in range(done, steps):
            batch = source(seed, n, batch_size)
            _check_finite_data(batch, n, every_array=n == done)
            placed, metrics = layout.step(placed, layout.put_batch(batch))
            record.add(metrics)
            stop = received[0] if received else None  # asked once: a signal may come between any two lines
            last = n + 1 == steps or stop is not None
            save = checkpoints is not None and (last or (n + 1) % save_every == 0)
            if save or last or (n + 1) % log_every == 0:
                record.write(n + 1)
            if save:
                _save(checkpoints, n + 1, layout.get_state(placed))
            if stop is not None:
                if checkpoints is not None:
                    checkpoints.wait()
                raise Stopped(n + 1, stop)
        if checkpoints is not None:
            checkpoints.wait()
        if received:  # it came while the last step was being written
            raise Stopped(steps, received[0])
    return layout.get_state(placed)


def _save(checkpoints: Checkpoints | None, step: int, state: TrainState) -> None:
    """Saves a state that is finite; the loss of a step does not yet show what its own update did."""
    if checkpoints is None:
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.ema)):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(np.asarray(leaf)).all():
            name = jax.tree_util.keystr(path[1:], simple=True, separator="/")
            raise NotFinite(f"step {step}: parameter {name} is not finite; the checkpoints are as they were")
    checkpoints.save(step, state)


def _check_finite_data(batch: Any, step: int, *, every_array: bool) -> None:
    """Looks at NumPy arrays always, at arrays on a device once: it would wait for them."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if (isinstance(leaf, np.ndarray) or every_array) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            values = np.asarray(leaf)
            if not np.isfinite(values).all():
                first = values[~np.isfinite(values)].flat[0]
                name = jax.tree_util.keystr(path)
                raise ValueError(f"source: batch{name} of step {step} holds {first}; data must be finite")


class _Record:
    """What the run says of itself: the JSONL file and the bar."""

    def __init__(self, log: str | Path | None, done: int, steps: int, batch_size: int, progress: bool):
        self.path = None if log is None else Path(log)
        if self.path is not None:
            truncate_log(self.path, done)
        self.batch_size, self.pending, self.since = batch_size, [], time.perf_counter()
        self.bar = tqdm(total=steps, initial=done, unit="step", disable=not progress, dynamic_ncols=True)

    def __enter__(self) -> "_Record":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def add(self, metrics: dict[str, Any]) -> None:
        """Keeps one step's metrics, wherever they are."""
        self.pending.append(metrics)

    def write(self, step: int) -> None:
        """Fetches what is pending, checks it, and writes one line of means."""
        if not self.pending:
            return
        rows = jax.device_get(self.pending)
        # Under pmap each metric comes once a device, and all are the same.
        values = {name: np.array([np.ravel(row[name])[0] for row in rows]) for name in rows[0]}
        for name in ("loss", "grad_norm"):
            bad = np.flatnonzero(~np.isfinite(values[name]))
            if bad.size:
                at = step - len(rows) + int(bad[0]) + 1
                raise NotFinite(f"step {at}: {name} is {values[name][bad[0]]}; the checkpoints are as they were")
        now = time.perf_counter()
        rate = len(rows) * self.batch_size / (now - self.since)
        names = ("loss", *sorted(values.keys() - {"loss"}))
        means = {name: float(np.mean(values[name])) for name in names}
        if self.path is not None:
            line = json.dumps({"step": step, **means, "images_per_second": round(rate, 1)})
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        self.bar.set_postfix_str(f"loss {means['loss']:.4f}, {rate:,.0f} images/s", refresh=False)
        self.bar.update(len(rows))
        self.pending, self.since = [], now


def truncate_log(path: str | Path, step: int) -> None:
    """Removes the lines of a JSONL log beyond a step, and a line that was cut short; the file may be absent.

    The rest is written beside it first, and put in its place by one rename.

    Raises:
      ValueError: the first line is no record of ours, whole or cut short: it is another file, and stays as it is.
    """
    path = Path(path)
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.splitlines()
    if lines and _step_of(lines[0]) is None and not (text == lines[0] and _is_cut_short(text)):
        raise ValueError(f"log: {path} is not a log of training, its first line is {lines[0][:40]!r}")
    kept = []
    for line in lines:
        at = _step_of(line)
        if at is None or at > step:
            break
        kept.append(line + "\n")
    beside = path.with_name(path.name + ".tmp")
    beside.write_text("".join(kept), encoding="utf-8")
    os.replace(beside, path)


def _step_of(line: str) -> int | None:
    """The step of a line of the log; None where it is no such line."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if type(step) is int else None


def _is_cut_short(text: str) -> bool:
    """Whether it is how a record begins."""
    opening = '{"step": '
    return text.startswith(opening) or opening.startswith(text)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM instead of dying of it; then the handlers are as they were before."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def give_back():
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number, frame):
        received.append(number)
        give_back()

    for number in before:
        signal.signal(number, handle)
    try:
        yield received
    finally:
        give_back()
