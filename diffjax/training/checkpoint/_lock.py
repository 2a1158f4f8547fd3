"""One process at a time writes to a folder: it holds a lock (flock) on the file `lock` in it.

    FolderLock(folder) --> folder/lock: "process 7 of host"     released by `release`, or when the process ends

The system frees the lock of a process that is killed; the file that remains does not lock. A forked child does not
hold the lock of its parent.
"""

import errno
import os
import socket
import warnings
import weakref
from pathlib import Path

LOCK = "lock"
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class FolderLock:
    """An exclusive lock of a folder, held until `release`."""

    def __init__(self, folder: Path):
        """Locks an existing folder.

        Raises:
          ValueError: it is held already, by another process or by this one.
          OSError: nothing can be written there.
        """
        self._path = folder / LOCK
        self._close = weakref.finalize(self, os.close, _acquire(folder, self._path))
        self._close.atexit = False
        _HELD.add(self)

    def release(self) -> None:
        """Frees the folder and removes the file; a second time does nothing, nor does a forked child."""
        if self._close.alive:
            fd = self._close.peek()[2][0]  # pyright: ignore[reportOptionalSubscript]
            if _is_at(self._path, fd):
                self._path.unlink(missing_ok=True)
            self._close()


_HELD: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _close_in_child() -> None:
    """Closes the child's copies: while one is open, the lock outlives its holder. The parent's lock stays."""
    for lock in list(_HELD):
        lock._close()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_close_in_child)


def _acquire(folder: Path, path: Path) -> int:
    """The descriptor of the locked file, with the holder's process and host written inside."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            raise OSError(
                error.errno, f"{error.strerror}; to read alone, open with read_only=True", str(path)
            ) from None
        try:
            if _lock(folder, path, fd):
                os.truncate(fd, 0)
                os.pwrite(fd, f"process {os.getpid()} of {socket.gethostname()}\n".encode(), 0)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its holder has just removed it


def _lock(folder: Path, path: Path, fd: int) -> bool:
    """Locks an open file; False if `path` is by now another file."""
    try:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 1000, 0).decode(errors="replace").strip() or "a process"
        raise ValueError(
            f"{folder} is in use: {holder} writes there (it holds {path}); wait until it closes the folder, or open it "
            "with read_only=True to read"
        ) from None
    except (OSError, ImportError) as error:  # Windows has no such module
        if isinstance(error, OSError) and error.errno not in _WITHOUT_LOCKS:
            raise
        warnings.warn(f"{folder}: no locks here ({error}): make sure that only one process writes there", stacklevel=6)
    return _is_at(path, fd)


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False
