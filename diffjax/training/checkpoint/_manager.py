"""Orbax's manager of one folder: saves in the background, deletes old steps, and fails in one line.

    save --copies to the host--> returns          wait --> on disk, or RuntimeError
             thread: state, about, digests --rename--> folder/STEP --> older ones to folder/trash --> deleted

Imported when a folder of checkpoints is opened, for importing Orbax takes seconds.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from diffjax._arrays import in_bytes, leaves_by_path
from diffjax.training._hosts import is_main
from diffjax.training.checkpoint._digest import without_key_type
from diffjax.training.checkpoint._logs import orbax_call
from diffjax.training.checkpoint._metadata import Metadata
from diffjax.training.checkpoint._orbax import (
    DigestSave,
    PreservationPolicy,
    SaveBarrier,
    StepNames,
    causes,
    first_line,
)

_DELETED = "the folder is gone, deleted or moved while it was in use"


class Manager:
    """The steps of a folder that exists, and the saves that are under way."""

    def __init__(self, folder: Path, newest: int, score: Callable[[int], float | None], *, read_only: bool):
        """Opens the folder, and removes what a dead run left half-written or half-deleted, unless `read_only`.

        Args:
          folder: where the steps are.
          newest: how many of the newest steps are preserved.
          score: the number of a step whose lowest preserves it, too.
          read_only: write and delete nothing.
        """
        self._folder, self._read_only = folder, read_only
        self._trash_thread: threading.Thread | None = None
        self._save_ended = threading.Event()
        self._barrier = SaveBarrier()
        if read_only:
            options = ocp.CheckpointManagerOptions(
                read_only=True, create=False, save_interval_steps=0, step_name_format=StepNames()
            )
        else:
            policy: Any = PreservationPolicy(newest, score)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                step_name_format=StepNames(),
                todelete_subdir="trash",
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(barrier_sync_fn=self._barrier),
            )
        with orbax_call():
            self._empty_trash()
            self._manager = ocp.CheckpointManager(folder, options=options)
        self._opened = os.stat(folder)

    def steps(self) -> list[int]:
        """The steps in the folder, ascending; one that is being saved counts."""
        if self._read_only:  # another process may have saved since
            self.reload()
        return sorted(self._manager.all_steps())

    def reload(self) -> None:
        """Lists the folder again."""
        with orbax_call():
            self._manager.reload()

    def save(self, step: int, state: PyTree, metadata: Metadata) -> None:
        """Saves a state, leaves [*d]; returns when it is copied. `RuntimeError` where it is refused or fails."""
        leaves = {path: without_key_type(leaf) for path, leaf in leaves_by_path(state).items()}
        returned = threading.Event()
        digests: Any = DigestSave(leaves, returned)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),  # pyright: ignore[reportCallIssue]
            about=ocp.args.JsonSave(metadata),  # pyright: ignore[reportCallIssue]
            digests=digests,
        )
        self._barrier.begin()
        with orbax_call(), self._one_line_errors(f"step {step} could not be saved"):
            if self._manager.save(int(step), args=args) is not True:
                raise RuntimeError(f"it already holds step {max(self.steps(), default=None)}")
        returned.set()
        self._save_ended.clear()
        self._trash_thread = threading.Thread(target=self._empty_trash_when_saved, name="trash", daemon=True)
        self._trash_thread.start()

    def wait(self) -> None:
        """Returns when every save is on disk; raises `RuntimeError` where one failed, and removes its partial files."""
        try:
            with orbax_call(), self._one_line_errors("a save did not reach the disk"):
                self._manager.wait_until_finished()
            self.check_folder()
        except RuntimeError:
            if jax.process_count() == 1 and not self._read_only:
                for path in self._folder.glob("*.orbax-checkpoint-tmp*"):
                    shutil.rmtree(path, ignore_errors=True)
            self.reload()
            raise
        finally:
            if self._trash_thread is not None:
                self._save_ended.set()
                self._trash_thread.join()
                self._trash_thread = None

    def check_folder(self) -> None:
        """Raises `RuntimeError` where the folder has been deleted or moved."""
        if self._is_gone():
            raise RuntimeError(f"{self._folder}: {_DELETED}")

    def _is_gone(self, *, failed: bool = False) -> bool:
        """True if the folder is no longer the one that was opened: Orbax would make another, empty one.

        Its inode may differ on a mounted file system: then the newest saved step decides, or that a save just failed.
        """
        if jax.process_count() > 1:
            return False
        try:
            same = os.path.samestat(self._opened, os.stat(self._folder))
        except FileNotFoundError:
            return True
        newest = max(self.steps(), default=None)
        return not same and (failed or (newest is not None and not (self._folder / str(newest)).is_dir()))

    def close(self) -> None:
        """Ends the threads, and deletes what is in the trash."""
        with orbax_call():
            self._manager.close()
            self._empty_trash()

    def _empty_trash_when_saved(self) -> None:
        """Deletes the trash as soon as the save has ended: the disk needs room for one step more than are preserved."""
        while self._manager.is_saving_in_progress() and not self._save_ended.wait(0.01):
            pass
        self._empty_trash()

    def _empty_trash(self) -> None:
        if not self._read_only and is_main():
            shutil.rmtree(self._folder / "trash", ignore_errors=True)

    @contextmanager
    def _one_line_errors(self, what: str) -> Iterator[None]:
        """Turns every error within into a `RuntimeError` of one line that names the folder."""
        try:
            yield
        except Exception as error:
            reason = first_line(error)
            if any("No space left" in str(cause) for cause in causes(error)):
                free = in_bytes(shutil.disk_usage(self._folder).free)
                reason = f"No space left on device ({free} free); the checkpoints before are whole"
            elif self._is_gone(failed=True):
                reason = _DELETED
            raise RuntimeError(f"{self._folder}: {what}: {reason}") from error
