"""Files in a folder or in a zip, read into memory by name; nothing is ever unpacked to a disk.

A zip comes from somewhere else, so it is not believed: a member with a path that leads out (absolute, `..`, a drive), a
link, an encrypted one, one compressed by a method that Python does not know, or one larger than `LARGEST` is refused by
name when the zip is opened. Some programs on Windows write `a\\b.png` for a/b.png; it is read as that. zipfile itself
stops at the declared size and checks the CRC-32.
"""

import os
import stat
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Any, Protocol

LARGEST = 2**28
"""Bytes of one member, unpacked."""
MOST = 20_000_000
"""Members of a zip."""
_PACK_AGAIN = "unpack it, and give the folder or pack it again"
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
_METHODS |= {getattr(zipfile, "ZIP_ZSTANDARD", zipfile.ZIP_STORED)}  # Python 3.14
_OTHER_METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 93: "Zstandard", 95: "XZ", 96: "JPEG", 98: "PPMd"}


class Files(Protocol):
    """Names with their sizes, and the bytes of each; links that lead nowhere."""

    path: Path
    sizes: dict[str, int]
    dangling: tuple[str, ...]

    def read(self, name: str) -> bytes: ...

    def checksum(self, name: str) -> int:
        """CRC-32 of the bytes of a file; the zip has it written down."""
        ...


def open_files(path: str | Path) -> Files:
    """The files under a folder, or the members of a zip, by their paths within, `/` between.

    Links are followed, those of folders as well as of files.

    Raises:
      ValueError: it is neither, a folder in it cannot be listed, a link leads back to a folder that it is in, or a
        member of the zip is refused.
    """
    path = Path(path)
    if path.is_dir():
        return _Folder(path)
    if path.is_file():
        return _Zip(path)
    raise ValueError(f"path: {path}: no such folder or zip")


class _Folder:
    """The files under a folder."""

    def __init__(self, path: Path):
        self.path = path
        self.sizes: dict[str, int] = {}
        dangling = []
        folders = [("", {_identity(path): path})]  # with all folders above, by what they are and not by their names
        while folders:
            below, above = folders.pop()
            for entry in _entries(path / below):
                name = f"{below}/{entry.name}" if below else entry.name
                if entry.is_symlink() and not (path / name).exists():
                    dangling.append(name)
                elif entry.is_dir():
                    inner = _identity(path / name)
                    if inner in above:
                        raise ValueError(
                            f"path: {path / name} is a link back to {above[inner]}, which it is in; remove the link"
                        )
                    folders.append((name, {**above, inner: path / name}))
                elif entry.is_file():  # no socket
                    self.sizes[name] = entry.stat().st_size
        self.dangling = tuple(sorted(dangling))

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def checksum(self, name: str) -> int:
        return zlib.crc32(self.read(name))


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as error:
        raise ValueError(f"path: {folder} cannot be listed: {error}") from None


class _Zip:
    """The members of a zip; each process opens it for itself."""

    dangling = ()

    def __init__(self, path: Path):
        self.path, self._lock = path, threading.Lock()
        try:
            self._opened = (os.getpid(), zipfile.ZipFile(path))
        except UnicodeDecodeError as error:
            what = f"the name of member {error.object!r} is said to be UTF-8 and is not; {_PACK_AGAIN}"
            raise ValueError(f"path: {path} is no zip that can be read: {what}") from None
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise ValueError(f"path: {path} is no zip that can be read: {error}") from None
        members = self._opened[1].infolist()
        if len(members) > MOST:
            raise ValueError(f"path: {path} has {len(members):,} members, more than {MOST:,}")
        for member in members:
            _check_member(path, member)
        names = {member.filename: member.filename.replace("\\", "/") for member in members}
        if len(set(names.values())) < len(names):
            twice = next(name for name in names if "\\" in name and names[name] in names)
            raise ValueError(f"path: {path}: member {twice!r} is refused: {names[twice]!r} is there, too")
        members = [member for member in members if not names[member.filename].endswith("/")]
        self.sizes = {names[member.filename]: member.file_size for member in members}
        self._checksums = {names[member.filename]: member.CRC for member in members}
        self._written = {name: written for written, name in names.items() if name != written}

    def read(self, name: str) -> bytes:
        with self._lock:  # the file has one position, and a process that was forked shares it
            if self._opened[0] != os.getpid():
                self._opened = (os.getpid(), zipfile.ZipFile(self.path))
            return self._opened[1].read(self._written.get(name, name))

    def checksum(self, name: str) -> int:
        return self._checksums[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "sizes": self.sizes, "_checksums": self._checksums, "_written": self._written}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _opened=(-1, None))


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    """Raises `ValueError` for a member that no data set has."""
    name = member.orig_filename
    refused = unreadable(member)
    if not is_safe(name.replace("\\", "/")):
        refused = "its path leads out of the archive"
    elif stat.S_ISLNK(member.external_attr >> 16):
        refused = "it is a link"
    elif member.file_size > LARGEST:
        refused = f"it holds {member.file_size:,} bytes, more than {LARGEST:,}"
    if refused:
        raise ValueError(f"path: {path}: member {name!r} is refused: {refused}")


def unreadable(member: zipfile.ZipInfo) -> str | None:
    """Why Python cannot read a member of a zip, and what to do; None where it can."""
    if member.flag_bits & 0x41:  # the second: with an encrypted directory
        return f"it is encrypted; {_PACK_AGAIN} without a password"
    if member.compress_type in _METHODS:
        return None
    method = _OTHER_METHODS.get(member.compress_type, "a method of which Python does not know")
    return f"it is compressed by {method} (method {member.compress_type}); {_PACK_AGAIN} by Deflate, as zip -r does"


def is_safe(name: str) -> bool:
    """Whether a path within an archive stays within it."""
    parts = name.split("/")
    return not (name.startswith("/") or "\\" in name or "\0" in name or ".." in parts or ":" in parts[0])
