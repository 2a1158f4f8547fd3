"""States on disk, by Orbax, such that nothing is lost: what is offered is whole, and what is read is what was written.

    folder/120/state      the arrays             written in the background, made visible together by one rename
    folder/120/about      our own JSON: format, path -> shape and dtype of each leaf, metrics, mesh, versions
    folder/120/digests    a digest of each leaf, of one file a process
    folder/aside/130      newer steps, after a rollback; damaged ones
    folder/trash          what is being deleted: renamed first, so that a listed step is a whole one

Orbax casts dtypes silently, and does not notice a flipped bit in array data; so `restore` first compares the tree with
`about`, in our words, then what was read with its digests. Orbax is imported when a folder is opened: it costs seconds
that `import diffjax` need not pay.
"""

import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffjax._arrays import in_bytes
from diffjax.training._about import Damaged, leaves_by_path, make_about
from diffjax.training._digest import raw
from diffjax.training._distributed import agree_on_main, gather_texts, is_main

_DELETED = "the folder is gone, deleted or moved while it was in use"


class Checkpoints:
    """A folder of checkpoints, newest kept; a context manager that waits and closes.

    In a run of several processes each of them makes one of the same folder, and all call every method together.

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
        about: Mapping[str, Any] | None = None,
    ):
        """Opens the folder.

        Args:
          folder: any path. It is created, and what a dead run left half-written or half-deleted in it is removed.
          keep: how many of the newest checkpoints stay.
          best: a metric given to `save`; the checkpoint where it is lowest stays too.
          read_only: touch nothing: for looking at a run that may be going on in another process.
          about: what to write of the run into each checkpoint, such as a hash of its configuration; JSON.

        Raises:
          ValueError: `keep` is less than 1, or `about` is no JSON.
          FileNotFoundError: `read_only`, and there is no such folder.
          NotADirectoryError: it is a file.
        """
        if keep < 1:
            raise ValueError(f"keep: at least one checkpoint must be kept, got {keep}")
        try:
            self._extra = json.loads(json.dumps(dict(about or {})))
        except TypeError as error:
            raise ValueError(f"about: it is written as JSON, but {error}") from None
        self.folder, self.keep, self.best_metric, self.read_only = Path(folder).absolute(), keep, best, read_only
        if read_only and not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: no such folder")
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{self.folder}: it is a file, not a folder of checkpoints")
        import orbax.checkpoint as ocp

        from diffjax.training import _orbax, _reading

        self._ocp, self._orbax, self._reading = ocp, _orbax, _reading
        self._sweeper: threading.Thread | None = None
        self._over = threading.Event()
        self._barrier = _orbax.Barrier()
        self._scores: dict[int, float | None] = {}
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
        else:
            policy: Any = _orbax.Keep(keep, self._score)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                todelete_subdir="trash",
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(barrier_sync_fn=self._barrier),
            )
        with self._orbax.quiet():
            self._empty_trash()
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._opened = os.stat(self.folder)

    def steps(self) -> list[int]:
        """The steps there are, ascending; one that is on its way to the disk counts."""
        if self.read_only:  # the run goes on
            self._reload()
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest step, or None where there is no checkpoint."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step whose metric `best` was lowest, or None where none has one."""
        return self._orbax.best_of(self.steps(), self._score)

    def about(self, step: int) -> dict[str, Any]:
        """What a checkpoint says of itself: format, step, time, versions, mesh, metrics, leaves, and the run's `about`.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: it is of another format version (or `Damaged`).
        """
        return self._reading.read_about(self._there(step))

    def check_space(self, state: Any) -> None:
        """Raises `RuntimeError` where the disk has no room for the checkpoints that a run will keep, and one more.

        Args:
          state: what will be saved; `jax.ShapeDtypeStruct`s will do.
        """
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        kept = self.keep + 1 + (self.best_metric is not None)

        def check() -> None:
            there = sum(_size(self.folder / str(step)) for step in self.steps())
            needed, free = max(kept * size - there, size), shutil.disk_usage(self.folder).free
            if free < needed:
                raise RuntimeError(
                    f"{self.folder}: no space for checkpoints: {kept} of {in_bytes(size)} are needed at a time, "
                    f"{in_bytes(needed)} more than now, and {in_bytes(free)} are free; keep fewer or make room"
                )

        agree_on_main(check)

    def save(self, step: int, state: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Saves a state; returns when it is copied, before it is on disk. A step that is there already is kept.

        Waits for the save before.

        Args:
          step: its number, larger than that of every checkpoint in the folder.
          state: a pytree of arrays; typed keys are fine. It may be donated as soon as this returns.
          metrics: name -> number, kept in `about`; without the metric `best` a step is never the best.

        Raises:
          ValueError: a leaf is no array, or has no elements.
          RuntimeError: an earlier save failed in the background (a full disk), or this one was refused.
        """
        leaves = leaves_by_path(state)
        for path, leaf in leaves.items():
            if not isinstance(leaf, jax.Array | np.ndarray) or leaf.size == 0:
                shown = f"of shape {list(leaf.shape)}" if isinstance(leaf, jax.Array | np.ndarray) else repr(leaf)
                raise ValueError(f"state: only arrays with elements in them are saved, and {path} is {shown}")
        self.wait()
        self._check_folder()
        if step == self.latest():
            return
        args = self._ocp.args
        about = make_about(step, state, metrics, self._extra)
        leaves = {path: raw(leaf) for path, leaf in leaves.items()}
        returned = threading.Event()
        digests: Any = self._orbax.DigestSave(leaves, returned)
        items = args.Composite(state=args.StandardSave(state), about=args.JsonSave(about), digests=digests)
        self._scores[step] = about["metrics"].get(self.best_metric)
        self._barrier.begin()
        with self._orbax.quiet(), self._named(f"step {step} could not be saved"):
            if self._manager.save(int(step), args=items) is not True:
                raise RuntimeError(f"it already holds step {self.latest()}")
        returned.set()
        self._over.clear()
        self._sweeper = threading.Thread(target=self._sweep, name="sweeper", daemon=True)
        self._sweeper.start()

    def restore(self, like: Any, step: int | None = None) -> Any:
        """The state of a step, bit for bit, on the devices that `like` is on, whatever it was saved from.

        With no step given, the newest that is not damaged: damaged ones are put aside, with one warning.

        Args:
          like: a state of the same structure, shapes, dtypes and key implementation; its values are not used, so
            `jax.ShapeDtypeStruct`s with shardings will do.
          step: which one; then it is this one or an error.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: its tree is another one (first difference named), or it is of another format version.
          Damaged: it is damaged, and so are all before it.
        """
        return self._newest_good(lambda folder: self._reading.read_state(folder, like), step)

    def restore_some(self, like: Any, step: int | None = None) -> Any:
        """Some leaves of a state, as `restore`; the others are not read.

        Args:
          like: those leaves under the same names, such as {"ema": params}; no typed keys.
          step: which one.
        """
        return self._newest_good(lambda folder: self._reading.read_some(folder, like), step)

    def _newest_good(self, read: Callable[[Path], Any], step: int | None) -> Any:
        """What `read` finds in a step, or in the newest where it finds no damage."""
        self.wait()
        if step is not None:
            return read(self._there(step))
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

    def verify(self, step: int | None = None) -> None:
        """Reads a step (the newest by default) on the host, 256 MiB at a time, and checks all of it.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          Damaged: it is not what was written.
        """
        self.wait()
        while True:
            at = self._newest_first()[0] if step is None else step
            try:
                self._reading.together(lambda at=at: [None for _ in self.leaves(at)])
                return
            except FileNotFoundError:  # where the run has just deleted the newest, there is a newer one
                if step is not None or not self.read_only:
                    raise

    def leaves(self, step: int, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
        """Path and array of each leaf of a saved state whose path begins with `prefix`, checked; keys as their data.

        Nothing is needed but the folder: no network, and no devices. Read one by one, so that a state larger than the
        memory passes.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          Damaged: a leaf is not what was written.
        """
        return self._reading.read_arrays(self._there(step), prefix)

    def rollback(self, step: int) -> list[int]:
        """Makes a step the newest: those after it are moved to `folder/aside`, and returned.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          RuntimeError: the folder was opened to read only.
        """
        self.wait()
        if self.read_only:
            raise RuntimeError(f"{self.folder}: it was opened to read only; nothing is moved")
        self._there(step)
        newer = [newer for newer in self.steps() if newer > step]
        agree_on_main(lambda: self._put_aside(newer))
        self._reload()
        return newer

    def wait(self) -> None:
        """Returns when every save is on disk; raises `RuntimeError` where one failed, and what it left is removed.

        Of several processes it is raised in the one that could not write, which should then end (`leave`): the others
        wait for it in vain, and are ended when it is gone.
        """
        try:
            with self._orbax.quiet(), self._named("a save did not reach the disk"):
                self._manager.wait_until_finished()
            self._check_folder()
        except RuntimeError:
            if jax.process_count() == 1 and not self.read_only:
                for path in self.folder.glob("*.orbax-checkpoint-tmp*"):
                    shutil.rmtree(path, ignore_errors=True)
            self._reload()
            raise
        finally:
            if self._sweeper is not None:
                self._over.set()
                self._sweeper.join()
                self._sweeper = None

    def _check_folder(self) -> None:
        if self._is_gone():
            raise RuntimeError(f"{self.folder}: {_DELETED}")

    def _is_gone(self, *, failed: bool = False) -> bool:
        """Whether the folder is no longer the one that was opened: Orbax makes another, in which nothing else is.

        Where its number differs, which it may on a mounted file system, the newest step that was saved decides, or that
        a save has just failed.
        """
        if jax.process_count() > 1:
            return False
        try:
            same = os.path.samestat(self._opened, os.stat(self.folder))
        except FileNotFoundError:
            return True
        newest = self.latest()
        return not same and (failed or (newest is not None and not (self.folder / str(newest)).is_dir()))

    def close(self) -> None:
        """Waits, and frees the threads. Raises `RuntimeError` where a save failed."""
        try:
            self.wait()
        finally:
            with self._orbax.quiet():
                self._manager.close()
                self._empty_trash()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _newest_first(self) -> list[int]:
        # Process 0's list: while a run goes on, others may see a newer one.
        steps = [int(step) for step in gather_texts(" ".join(map(str, self.steps())))[0].split()]
        if not steps:
            raise FileNotFoundError(f"{self.folder}: no checkpoint")
        return steps[::-1]

    def _there(self, step: int) -> Path:
        """The folder of a step, which exists."""
        if step not in self.steps():
            raise FileNotFoundError(f"{self.folder}: no checkpoint of step {step}")
        return self.folder / str(step)

    def _fall_back(self, good: int, failed: list[Damaged]) -> None:
        """Says once what was damaged, and moves it aside: a later save of that step would be refused."""
        if not self.read_only:
            self.rollback(good)
        if is_main():
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            moved = "" if self.read_only else f"; what is damaged is now in {self.folder / 'aside'}"
            warnings.warn(f"{failed[0]}{more}; going back to step {good}{moved}", stacklevel=3)

    def _put_aside(self, steps: list[int]) -> None:
        """Moves steps, newest first: cut short, what is left is a run up to some step."""
        aside = self.folder / "aside"
        aside.mkdir(exist_ok=True)
        for step in sorted(steps, reverse=True):
            names = (str(step), *(f"{step}.{i}" for i in range(1, 10**6)))
            os.rename(self.folder / str(step), next(aside / name for name in names if not (aside / name).exists()))

    def _reload(self) -> None:
        with self._orbax.quiet():
            self._manager.reload()
        self._scores.clear()

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

    def _sweep(self) -> None:
        """Empties the trash as soon as the save is through, so that one checkpoint more than are kept must fit."""
        while self._manager.is_saving_in_progress() and not self._over.wait(0.01):
            pass
        self._empty_trash()

    def _empty_trash(self) -> None:
        if not self.read_only and is_main():
            shutil.rmtree(self.folder / "trash", ignore_errors=True)

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Turns whatever is raised below into one line that names the folder."""
        try:
            yield
        except Exception as error:
            reason = self._orbax.first_line(error)
            if any("No space left" in str(cause) for cause in self._orbax.causes(error)):
                free = in_bytes(shutil.disk_usage(self.folder).free)
                reason = f"No space left on device ({free} free); the checkpoints before are whole"
            elif self._is_gone(failed=True):
                reason = _DELETED
            raise RuntimeError(f"{self.folder}: {what}: {reason}") from error


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
