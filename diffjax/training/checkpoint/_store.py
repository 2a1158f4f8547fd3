"""Checkpoints of states, by Orbax: a listed step is complete, and a state that is read is bitwise the one written.

    folder/120/state      the arrays             written in the background, made visible together by one rename
    folder/120/about      metadata, JSON: format, path -> shape and dtype of each leaf, metrics, mesh, versions
    folder/120/digests    a digest of each leaf, one file a process
    folder/aside/130      newer steps, after a rollback; damaged ones
    folder/trash          steps that are being deleted: renamed first, so that a listed step is a complete one
    folder/lock           locked by the process that writes here; its number and machine

`restore` compares the tree with the metadata, then the arrays with their digests (`_reading.py`). Orbax is imported
when a folder is opened: it costs seconds that `import diffjax` need not pay.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from diffjax._arrays import in_bytes, leaves_by_path
from diffjax._numbers import checked_numbers
from diffjax.training._hosts import gather_texts, is_main, run_on_main
from diffjax.training.checkpoint._files import (
    LARGEST_STEP,
    bytes_in,
    check_is_no_file,
    check_utf8,
    move_aside,
    warn_of_large_numbers,
)
from diffjax.training.checkpoint._lock import FolderLock
from diffjax.training.checkpoint._metadata import Damaged, Metadata, make_metadata

T = TypeVar("T")


@checked_numbers
class Checkpoints:
    """A folder of checkpoints, of which the newest are preserved; a context manager that waits and closes.

    In a run of several processes each of them opens the same folder, and all call the same methods in the same order.
    One run at a time writes to a folder, by one object: it is locked until it is closed or its process ends.

    Example:
    >>> import tempfile, jax.numpy as jnp
    >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
    ...     checkpoints.save(3, {"w": jnp.arange(2.0)})
    ...     checkpoints.restore({"w": jnp.zeros(2)})
    {'w': Array([0., 1.], dtype=float32)}
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int = 3,
        best: str | None = None,
        read_only: bool = False,
        about: Mapping[str, object] | None = None,
    ):
        """Opens the folder.

        Args:
          folder: any path. It is created, and what a dead run left half-written or half-deleted in it is removed.
          keep: how many of the newest checkpoints are preserved.
          best: name of a metric given to `save`; the checkpoint where it is lowest is preserved too.
          read_only: write nothing and take no lock: for reading a run that may be training in another process.
          about: JSON to write into the metadata of each checkpoint, such as a hash of the run's configuration.

        Raises:
          ValueError: `keep` is less than 1, `about` is no JSON, the folder's path is not UTF-8, or it is open for
            writing already, here or in another process (in several processes `Refused`).
          FileNotFoundError: `read_only`, and there is no such folder.
          NotADirectoryError: it is a file, or `trash` in it is.
          OSError: it cannot be written to, and `read_only` is False.
        """
        if keep < 1:
            raise ValueError(f"keep: at least one checkpoint must be kept, got {keep}")
        try:
            self._about = json.loads(json.dumps(dict(about or {})))
        except TypeError as error:
            raise ValueError(f"about: it is written as JSON, but {error}") from None
        self.folder, self.keep, self.best_metric, self.read_only = Path(folder).absolute(), keep, best, read_only
        self._closed = False
        check_utf8(str(self.folder))
        if read_only and not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: no such folder")
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{self.folder}: it is a file, not a folder of checkpoints")
        if not read_only:
            check_is_no_file(self.folder / "trash")
        # Imported here, for Orbax takes seconds.
        from diffjax.training.checkpoint import _manager, _orbax, _reading

        self._orbax, self._reading = _orbax, _reading
        self._scores: dict[int, float | None] = {}
        self._lock: FolderLock | None = None
        if not read_only:
            run_on_main(self._take_lock)
        try:
            self._manager = _manager.Manager(self.folder, keep, self._score, read_only=read_only)
            if read_only or is_main():  # `is_main` starts JAX's devices, which a reader need not
                warn_of_large_numbers(self.folder)
        except BaseException:
            self._release_lock()
            raise

    def steps(self) -> list[int]:
        """The steps in the folder, ascending; one that is being saved counts."""
        if self.read_only:
            self._scores.clear()
        return self._manager.steps()

    def latest(self) -> int | None:
        """The newest step, or None where there is no checkpoint."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step whose metric `best` was lowest, or None where none has one."""
        return self._orbax.best_of(self.steps(), self._score)

    @checked_numbers
    def about(self, step: int) -> Metadata:
        """The metadata of a checkpoint: format, step, time, versions, mesh, metrics, leaves, and the run's `about`.

        Args:
          step: its number, a scalar.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: it is of another format (or `Damaged`).
        """
        return self._reading.read_metadata(self._folder_of(step))

    def check_space(self, state: PyTree) -> None:
        """Raises `RuntimeError` where the disk has no room for the checkpoints that a run preserves, and one more.

        Args:
          state: what will be saved, leaves [*d]; `jax.ShapeDtypeStruct`s will do.
        """
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        number = self.keep + 1 + (self.best_metric is not None)

        def check() -> None:
            used = sum(bytes_in(self.folder / str(step)) for step in self.steps())
            needed, free = max(number * size - used, size), shutil.disk_usage(self.folder).free
            if free < needed:
                raise RuntimeError(
                    f"{self.folder}: no space for checkpoints: {number} of {in_bytes(size)} are needed at a time, "
                    f"{in_bytes(needed)} more than now, and {in_bytes(free)} are free; keep fewer or make room"
                )

        run_on_main(check)

    @checked_numbers
    def save(self, step: int, state: PyTree, metrics: Mapping[str, float] | None = None) -> None:
        """Saves a state; returns when it is copied, before it is on disk. The newest step is not saved a second time.

        Waits for the previous save.

        Args:
          step: its number, from 0 to 2^63 - 1, larger than that of every checkpoint in the folder.
          state: a pytree of arrays [*d], also of typed keys. It may be donated as soon as this returns.
          metrics: name -> scalar, for the metadata; without the metric `best` a step is never the best.

        Raises:
          ValueError: a leaf is no array, or has no elements; or the number is out of range.
          RuntimeError: an earlier save failed in the background (a full disk), this one was refused, or the folder was
            opened to read only, or is closed.
        """
        self._check_writes("saved")
        if not 0 <= step <= LARGEST_STEP:
            raise ValueError(f"step: a number from 0 to 2^63 - 1 is needed, got {step}")
        for path, leaf in leaves_by_path(state).items():
            if not isinstance(leaf, jax.Array | np.ndarray) or leaf.size == 0:
                shown = f"of shape {list(leaf.shape)}" if isinstance(leaf, jax.Array | np.ndarray) else repr(leaf)
                raise ValueError(f"state: only arrays with elements in them are saved, and {path} is {shown}")
        self.wait()
        self._manager.check_folder()
        if step == self.latest():
            return
        metadata = make_metadata(step, state, metrics, self._about)
        self._scores[step] = metadata["metrics"].get(self.best_metric)
        self._manager.save(step, state, metadata)

    @checked_numbers
    def restore(self, like: PyTree, step: int | None = None) -> PyTree:
        """The state of a step, bitwise, on the devices of `like`, whatever devices it was saved from.

        Without a step, the newest that is not damaged: damaged ones are moved aside, with one warning.

        Args:
          like: a state of the same structure, shapes [*d], dtypes and key implementation; its values are not used, so
            `jax.ShapeDtypeStruct`s with shardings will do.
          step: its number; no other is then tried.

        Returns:
          A pytree of arrays [*d] like `like`.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: its tree differs (the first difference is named), or it is of another format.
          Damaged: it is damaged, and so are all before it.
        """
        return self._newest_intact(lambda folder: self._reading.read_state(folder, like), step)

    @checked_numbers
    def restore_some(self, like: PyTree, step: int | None = None) -> PyTree:
        """Some leaves of a state, as `restore`; the others are not read.

        Args:
          like: those leaves [*d] under the same names, such as {"ema": params}; no typed keys.
          step: its number; by default the newest.
        """
        return self._newest_intact(lambda folder: self._reading.read_some(folder, like), step)

    def _newest_intact(self, read: Callable[[Path], T], step: int | None) -> T:
        """`read` of a step, or of the newest that is not damaged."""
        self.wait()
        if step is not None:
            return read(self._folder_of(step))
        failed: dict[int, Damaged] = {}
        candidates = self._newest_first()
        while candidates:
            try:
                state = read(self.folder / str(candidates[0]))
            except Damaged as error:
                failed[candidates.pop(0)] = error
                continue
            except FileNotFoundError:
                if not self.read_only:
                    raise
                candidates = [newer for newer in self._newest_first() if newer not in failed]
                continue
            if failed:
                self._fall_back(candidates[0], list(failed.values()))
            return state
        raise next(iter(failed.values()))

    @checked_numbers
    def verify(self, step: int | None = None) -> None:
        """Reads a step (the newest by default) on the host, 256 MiB at a time, and checks every byte.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          Damaged: it differs from what was written.
        """
        self.wait()
        while True:
            at = self._newest_first()[0] if step is None else step
            try:
                self._reading.sync_read_errors(lambda at=at: [None for _ in self.leaves(at)])
                return
            except FileNotFoundError:  # the run has just deleted the newest, since it saved a newer one
                if step is not None or not self.read_only:
                    raise

    @checked_numbers
    def leaves(self, step: int, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
        """Path and array [*d] of each leaf of a state whose path begins with `prefix`, checked; keys as their data.

        Neither the network nor devices are needed. Leaves are read one by one: the state may be larger than the memory.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          Damaged: a leaf differs from what was written.
        """
        return self._reading.read_arrays(self._folder_of(step), prefix)

    @checked_numbers
    def rollback(self, step: int) -> list[int]:
        """Makes a step the newest: the steps after it are moved to `folder/aside`, and returned.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          NotADirectoryError: `folder/aside` is a file; nothing is moved.
          RuntimeError: the folder was opened to read only, or is closed.
        """
        self._check_writes("moved")
        self.wait()
        self._folder_of(step)
        newer = [newer for newer in self.steps() if newer > step]
        run_on_main(lambda: move_aside(self.folder, newer))
        self._manager.reload()
        self._scores.clear()
        return newer

    def _check_writes(self, what: str) -> None:
        if self.read_only:
            raise RuntimeError(f"{self.folder}: it was opened to read only; nothing is {what}")
        if self._closed:
            raise RuntimeError(f"{self.folder}: these checkpoints are closed; nothing is {what}; open the folder anew")

    def wait(self) -> None:
        """Returns when every save is on disk; raises `RuntimeError` where one failed, and removes its partial files.

        Of several processes the error is raised in the one that could not write, which should then end itself
        (`diffjax.training.abort`): the others wait for it, and JAX ends them when it is gone.
        """
        if self._closed:
            return
        try:
            self._manager.wait()
        except RuntimeError:
            self._scores.clear()
            raise

    def close(self) -> None:
        """Waits, ends the threads and unlocks the folder. Raises `RuntimeError` where a save failed."""
        if self._closed:
            return
        try:
            self.wait()
        finally:
            self._closed = True
            try:
                self._manager.close()
            finally:
                self._release_lock()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_lock(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.folder)

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _newest_first(self) -> list[int]:
        # Process 0's list: while a run goes on, others may see a newer one.
        steps = [int(step) for step in gather_texts(" ".join(map(str, self.steps())))[0].split()]
        if not steps:
            raise FileNotFoundError(f"{self.folder}: no checkpoint")
        return steps[::-1]

    def _folder_of(self, step: int) -> Path:
        """The folder of a step; `FileNotFoundError` where there is none."""
        if step not in self.steps():
            raise FileNotFoundError(f"{self.folder}: no checkpoint of step {step}")
        return self.folder / str(step)

    def _fall_back(self, intact: int, failed: list[Damaged]) -> None:
        """Moves damaged steps aside, since later saves of them would be refused, and warns of them once."""
        if not self.read_only:
            self.rollback(intact)
        if is_main():
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            moved = "" if self.read_only else f"; what is damaged is now in {self.folder / 'aside'}"
            warnings.warn(f"{failed[0]}{more}; going back to step {intact}{moved}", stacklevel=3)

    def _score(self, step: int) -> float | None:
        """The metric `best` of a step, read once; None where it has none."""
        if self.best_metric is None:
            return None
        if step not in self._scores:
            try:
                self._scores[step] = self.about(step).get("metrics", {}).get(self.best_metric)
            except (ValueError, FileNotFoundError):
                self._scores[step] = None
        return self._scores[step]
