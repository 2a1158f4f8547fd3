"""Batches made ahead: the same for any number of workers, errors where the batch was to come, nothing left behind."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from diffjax.data import ImageFolder, WorkerDied, from_images, from_items, prefetch, random_flip

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 1), np.uint8)
SOURCE = from_images(IMAGES, np.arange(10), augment=random_flip)
needs_grain = lambda: pytest.importorskip("grain", reason="the extra `data` is not installed")


def ours():
    """The threads that make batches."""
    return [thread for thread in threading.enumerate() if thread.name == "diffjax-prefetch"]


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def check_stream(batches, first, last):
    batches = list(batches)
    assert len(batches) == last - first
    for step, (x, y) in zip(range(first, last), batches, strict=True):
        want = SOURCE(3, step, 6, part=(1, 2))
        np.testing.assert_array_equal(x, want[0])
        np.testing.assert_array_equal(y, want[1])
        assert type(x) is np.ndarray


@pytest.mark.parametrize("depth", [1, 4])
def test_the_stream_of_a_thread_is_the_source(depth):
    with prefetch(SOURCE, 3, 5, 6, part=(1, 2), stop=12, depth=depth) as batches:
        check_stream(batches, 5, 12)
        assert next(batches, None) is None
    assert not ours()
    with prefetch(SOURCE, 3, 5, 6, stop=5) as batches:
        assert list(batches) == []


def test_a_few_batches_are_made_ahead_and_put_in_order():
    made, put = [], []

    def source(seed, step, size):  # of three arguments: it is asked for a part only where there is one
        made.append(step)
        return step

    with prefetch(source, 0, 0, 1, depth=3, put=lambda batch: put.append(batch) or batch) as batches:
        assert next(batches) == 0
        until(lambda: len(put) == 4)  # one was taken, three wait
        time.sleep(0.3)
        assert made == put == [0, 1, 2, 3]
    assert not ours()
    assert list(batches) == []  # closed


def test_batches_of_one_call_come_together():
    put = lambda batches: [step * 10 for step in batches]
    with prefetch(lambda seed, step, size: step, 0, 2, 1, stop=9, each=3, put=put) as batches:
        assert list(batches) == [[20, 30, 40], [50, 60, 70]]  # the last one would not be whole
    assert not ours()


@pytest.mark.parametrize("where", ["source", "put"])
def test_an_error_is_raised_where_its_batch_was_to_come_and_again(where):
    def fail(step):
        if step == 2:
            raise KeyError(f"no file for {step}")
        return step

    source, put = (lambda seed, step, size: step), None
    if where == "source":
        source = lambda seed, step, size: fail(step)
    else:
        put = fail
    batches = prefetch(source, 0, 0, 1, put=put)
    assert [next(batches), next(batches)] == [0, 1]
    for _ in range(2):
        with pytest.raises(KeyError, match="no file for 2"):
            next(batches)
    until(lambda: not ours())
    batches.close()


@pytest.mark.slow
def test_what_is_dropped_unclosed_ends_too():
    batches = prefetch(SOURCE, 0, 0, 4)
    next(batches)
    assert ours()
    del batches
    gc.collect()
    until(lambda: not ours())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth: .* got 0"),
        ({"workers": -1}, "workers: .* got -1"),
        ({"each": 0}, "each: .* got 0"),
        ({"start": -1}, "start: .* got -1"),
        ({"start": 5, "stop": 4}, "stop: at least start = 5 is needed, got 4"),
    ],
)
def test_numbers_that_are_wrong_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        prefetch(SOURCE, **({"seed": 0, "start": 0, "size": 4} | options))
    assert not ours()


@pytest.mark.slow
def test_two_workers_give_the_same_stream_and_a_killed_one_is_named():
    """The same in order, each in a process of its own; then one is killed, and that is said within seconds."""
    needs_grain()
    before = set(multiprocessing.active_children())
    with prefetch(SOURCE, 3, 5, 6, part=(1, 2), workers=2) as batches:
        check_stream([next(batches) for _ in range(6)], 5, 11)
        workers = set(multiprocessing.active_children()) - before
        assert workers  # one or both: the second may start after the first batch
        os.kill(workers.pop().pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(WorkerDied, match=r"workers: one of 2 data workers has died: .* exit code -9") as first:
            list(batches)  # without end, were it not for that
        assert time.monotonic() - start < 30
        with pytest.raises(WorkerDied) as again:
            next(batches)
        assert again.value is first.value
    assert not set(multiprocessing.active_children()) - before
    assert not ours()


@pytest.mark.slow
def test_more_workers_than_batches_give_the_same_stream():
    needs_grain()
    with prefetch(SOURCE, 3, 5, 6, part=(1, 2), stop=7, workers=3) as batches:
        check_stream(batches, 5, 7)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_damaged_image_is_named_from_a_worker_too(tmp_path):
    needs_grain()
    (tmp_path / "a.png").write_bytes(b"no picture")
    with (
        prefetch(from_items(ImageFolder(tmp_path)), 0, 0, 2, workers=1) as batches,
        pytest.raises(ValueError, match=r"a\.png: image cannot be decoded"),
    ):
        next(batches)
    assert not multiprocessing.active_children()


ORPHANS = """
import multiprocessing, os, signal, numpy as np
from diffjax.data import from_arrays, prefetch
if __name__ == "__main__":
    batches = prefetch(from_arrays(np.zeros((100, 3000))), 0, 0, 50, workers=2)
    next(batches), next(batches)  # one of each worker: both have started, and no longer heed signals
    workers = [child.pid for child in multiprocessing.active_children()]
    for pid in workers:  # as the terminal or the scheduler would, to the whole job
        os.kill(pid, signal.SIGINT), os.kill(pid, signal.SIGTERM)
    for _ in range(10):
        next(batches)
    print(*workers, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_heed_no_signal_and_die_with_their_parent(tmp_path):
    needs_grain()
    (tmp_path / "run.py").write_text(ORPHANS)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else None
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run.py")], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    until(lambda: not any(os.path.exists(f"/proc/{pid}") and _runs(pid) for pid in workers))
    if before is not None:
        until(lambda: not {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("psm_")})


def _runs(pid):
    try:
        return "multiprocessing" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False
