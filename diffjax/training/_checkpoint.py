"""States on disk, by Orbax; the only module that knows it.

    folder/120/state   the arrays            written in the background, made visible by one rename
    folder/120/about   our own JSON: path -> shape, dtype, CRC-32 of each leaf
    folder/trash       what is being deleted: renamed first, so that a listed step is a whole one

Orbax casts dtypes silently, and does not notice a flipped bit in array data; so `restore` first compares the tree with
`about`, in our words, then the bytes with their CRC. Orbax is imported when a folder is opened: it costs a second that
`import diffjax` need not pay.
"""

import logging
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

FORMAT = 1


class Checkpoints:
    """A folder of checkpoints, newest kept; a context manager that waits and closes.

    >>> import tempfile, jax.numpy as jnp
    >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
    ...     checkpoints.save(3, {"w": jnp.arange(2.0)})
    ...     checkpoints.restore({"w": jnp.zeros(2)})
    {'w': Array([0., 1.], dtype=float32)}
    """

    def __init__(self, folder: str | Path, *, keep: int = 3, read_only: bool = False):
        """Opens the folder.

        Args:
          folder: any path. It is created, and what a dead run left half-written or half-deleted in it is removed.
          keep: how many of the newest checkpoints stay.
          read_only: touch nothing: for looking at a run that may be going on in another process.

        Raises:
          ValueError: `keep` is less than 1.
          FileNotFoundError: `read_only`, and there is no such folder.
        """
        if keep < 1:
            raise ValueError(f"keep: at least one checkpoint must be kept, got {keep}")
        import orbax.checkpoint as ocp

        self.folder, self.read_only = Path(folder).absolute(), read_only
        if read_only and not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: no such folder")
        with _quiet():
            if read_only:
                options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
            else:
                options = ocp.CheckpointManagerOptions(
                    max_to_keep=keep, todelete_subdir="trash", cleanup_tmp_directories=True
                )
            self._empty_trash()
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """The newest step, or None where there is no checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Saves a state; returns when it is copied, before it is on disk. A step that is there already is kept.

        Args:
          step: its number, larger than that of every checkpoint in the folder.
          state: a pytree of arrays; typed keys are fine.

        Raises:
          RuntimeError: an earlier save failed in the background (a full disk), or this one was refused.
        """
        import orbax.checkpoint as ocp

        if step == self.latest():
            return
        about = {"format": FORMAT, "step": int(step), "leaves": _describe(state, digest=True)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about))
        with _quiet(), self._named(f"step {step} could not be saved"):
            self._manager.check_for_errors()
            if self._manager.save(int(step), args=items) is not True:
                raise RuntimeError(f"it already holds step {self.latest()}")

    def restore(self, like: Any, step: int | None = None) -> Any:
        """The state of a step (the newest by default), bit for bit, on the devices that `like` is on.

        Args:
          like: a state of the same structure, shapes, dtypes and key implementation; its values are not used.
          step: which one.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: its tree is another one (first difference named), or its bytes are damaged.
        """
        import orbax.checkpoint as ocp

        self.wait()
        step = self.latest() if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise FileNotFoundError(f"{self.folder}: no checkpoint{'' if step is None else f' of step {step}'}")
        with _quiet(), self._named(f"step {step} could not be read"):
            about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        _check_same_tree(about["leaves"], _describe(like, digest=False), f"{self.folder}/{step}")
        items = ocp.args.Composite(state=ocp.args.StandardRestore(jax.tree.map(_abstract, like)))
        with _quiet(), self._named(f"step {step} could not be read"):
            state = self._manager.restore(step, args=items)["state"]
        _check_digests(about["leaves"], _describe(state, digest=True), f"{self.folder}/{step}")
        return state

    def wait(self) -> None:
        """Returns when every save is on disk; raises `RuntimeError` where one failed."""
        with _quiet(), self._named("a save did not reach the disk"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and frees the threads. Raises `RuntimeError` where a save failed."""
        try:
            self.wait()
        finally:
            with _quiet():
                self._manager.close()
                self._empty_trash()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _empty_trash(self) -> None:
        if not self.read_only:
            shutil.rmtree(self.folder / "trash", ignore_errors=True)

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Turns whatever is raised below into one line that names the folder."""
        try:
            yield
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RuntimeError(f"{self.folder}: {what}: {reason}") from error


def _abstract(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def _describe(tree: Any, *, digest: bool) -> dict[str, dict[str, Any]]:
    """Path -> shape, dtype and CRC-32 of each leaf, in the order of the tree."""
    described = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        described[name] = {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        if digest:
            described[name]["crc32"] = _crc32(leaf)
    return described


def _crc32(leaf: Any) -> int | None:
    """The CRC-32 of an array's bytes; None where another host holds part of it."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if not getattr(leaf, "is_fully_addressable", True):
        return None
    return zlib.crc32(np.ascontiguousarray(np.asarray(leaf)).view(np.uint8).data)


def _check_same_tree(saved: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Raises `ValueError` naming the first leaf in which two trees differ."""
    shown = lambda leaf: f"{leaf['dtype']}{leaf['shape']}" if leaf else "absent"
    for path in (*wanted, *saved):
        there, here = saved.get(path), wanted.get(path)
        if there is None or here is None or any(there[part] != here[part] for part in ("shape", "dtype")):
            message = f"{path} is {shown(there)} in the checkpoint, {shown(here)} in this run"
            raise ValueError(f"{where}: a checkpoint of another architecture: {message}")


def _check_digests(saved: dict[str, Any], read: dict[str, Any], where: str) -> None:
    """Raises `ValueError` naming the first leaf whose bytes are not those that were saved."""
    for path, leaf in saved.items():
        if None not in (leaf["crc32"], read[path]["crc32"]) and leaf["crc32"] != read[path]["crc32"]:
            raise ValueError(f"{where}: damaged on disk: {path} does not match its checksum")


def _drop_chatter(record: logging.LogRecord) -> bool:
    return not (record.levelno < logging.ERROR and "orbax" in record.pathname)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's log off the terminal: its notices always, and here what asyncio says of failures we raise."""
    logging.getLogger("absl").addFilter(_drop_chatter)  # a second time adds nothing
    asyncio, silence = logging.getLogger("asyncio"), lambda record: False
    asyncio.addFilter(silence)
    try:
        yield
    finally:
        asyncio.removeFilter(silence)
