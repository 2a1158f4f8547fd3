"""Images in a folder or a zip, a folder a class: PATH/UNDER/CLASS/.../a.jpg; or all of one kind: PATH/UNDER/a.jpg.

Listed once, decoded when read. The order is that of the paths, so that it is the same on every machine. Classes
are in the order of their names; where all names are numbers, in that of the numbers: 0, 1, 2, ..., 10, 11.
"""

import hashlib
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from diffjax._numbers import checked_numbers
from diffjax.data._files import Files, open_files
from diffjax.data._metadata import METADATA, read_metadata
from diffjax.data._pictures import SUFFIXES, decode_image

_CHECKED = 2**28  # bytes whose checksums are taken
_WAY_ON = "mend or remove it, or leave such out (data.skip-bad of diffjax train)"
_NUMBER = re.compile(r"-?\d{1,300}(\.\d+)?", re.ASCII)


@checked_numbers
class ImageFolder:
    """Items `folder[i] -> (image uint8 [h, w, c], label)`, for `from_items`.

    Args:
      path: a folder, or a zip, which is read as it is (nothing is unpacked to the disk), or `open_files` of either.
      under: the folder within that holds the classes, such as "cifar10/train"; "" is the outermost.
      size: pixels a side: the shorter side is scaled to it and the middle cut out. None leaves images as they are;
        then all must be of one shape.
      channels: 3 (colours) or 1 (grey). Transparent parts are laid on white.
      text: the field of metadata.jsonl that holds an image's caption, usually "text"; None: there are no captions.

    Attributes:
      classes: names of the class folders, sorted (as numbers, where all are), or None where the images lie in no
        folders. Links to folders are followed.
      labels: int32 [n], places in `classes`, or None.
      names: paths of the images within `path`, sorted.
      texts: their captions, for `with_texts`, or None.
      left_out: {suffix: count} of the files that are no images by their suffix, and of links that lead nowhere.

    Raises:
      ValueError: there is no such folder or zip, or no image in it; images lie both next to and in class folders; a
        member of the zip has an unsafe path or size. When an item is read: its file cannot be decoded; its path is
        in the message. With `text`: there is no metadata.jsonl, or an image has no line in it.
    """

    def __init__(
        self,
        path: str | Path | Files,
        *,
        under: str = "",
        size: int | None = None,
        channels: int = 3,
        text: str | None = None,
    ):
        if size is not None and size < 1:
            raise ValueError(f"size: at least one pixel is needed, got {size}")
        if channels not in (1, 3):
            raise ValueError(f"channels: 1 or 3 are needed, got {channels}")
        self.files = open_files(path) if isinstance(path, str | Path) else path
        self.size, self.channels = size, channels
        prefix = under.strip("/") + "/" if under.strip("/") else ""
        self.names = sorted(name for name in self.files.sizes if name.startswith(prefix) and _is_image(name))
        self._prefix = prefix
        self.left_out = self._count_left_out()
        if not self.names:
            there = f"; there are {in_words(self.left_out)}" if self.left_out else ""
            raise ValueError(f"path: no image in {self._where(prefix)} ({', '.join(SUFFIXES)}){there}")
        folders = [name[len(prefix) :].split("/")[:-1] for name in self.names]
        loose = [name for name, inside in zip(self.names, folders, strict=True) if not inside]
        if loose and len(loose) < len(self.names):
            raise ValueError(f"path: {self._where(loose[0])} lies next to folders of images: in which class is it?")
        self.classes = None if loose else sort_classes({inside[0] for inside in folders})
        self.labels = None
        if self.classes is not None:
            place = {name: i for i, name in enumerate(self.classes)}
            self.labels = np.array([place[inside[0]] for inside in folders], np.int32)
        self.texts = None
        if text is not None:
            self.texts, others = read_metadata(self.files, self.names, text)
            self.left_out.pop(".jsonl", None)
            self.left_out |= {f"lines of {METADATA} without an image": others} if others else {}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int32 | None]:
        name = self.names[index]
        try:
            data = self.files.read(name)
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{self._where(name)}: cannot be read: {error}; {_WAY_ON}") from error
        try:
            image = decode_image(data, self._where(name), size=self.size, channels=self.channels)
        except ValueError as error:
            raise ValueError(f"{error}; {_WAY_ON}") from error
        return image, None if self.labels is None else self.labels[index]

    def describe(self, index: int) -> str:
        """The path of an item."""
        return self._where(self.names[index])

    def digest(self) -> str:
        """SHA-256 of the images: their paths under the folder of classes, sizes and CRC-32; classes in order; captions.

        It does not depend on where the folder lies. Of more than 256 MiB the checksums of some are taken, drawn at
        random but always the same; the paths and sizes of all.
        """
        total, checked = 0, set()
        for place in np.random.default_rng(0).permutation(len(self.names)):
            total += self.files.sizes[self.names[place]]
            if checked and total > _CHECKED:
                break
            checked.add(self.names[place])
        found = hashlib.sha256(repr(self.classes).encode())
        if self.texts is not None:
            found.update(repr(self.texts).encode())
        for name in self.names:
            try:
                checksum = self.files.checksum(name) if name in checked else "-"
            except OSError as error:
                raise ValueError(f"{self._where(name)}: cannot be read: {error}") from error
            line = f"{name[len(self._prefix) :]} {self.files.sizes[name]} {checksum}\n"
            found.update(line.encode(errors="surrogateescape"))
        return found.hexdigest()

    def _count_left_out(self) -> dict[str, int]:
        others = [name for name in (*self.files.sizes, *self.files.dangling) if name.startswith(self._prefix)]
        others = [
            name for name in others if not _is_hidden(name) and (name in self.files.dangling or not _is_image(name))
        ]
        kinds = ["links to nowhere" if name in self.files.dangling else _suffix(name) for name in others]
        return dict(Counter(kinds).most_common())

    def _where(self, name: str) -> str:
        return f"{self.files.path}/{name}"


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Names in their order; numbers in that of the numbers, where all names are.

    >>> sort_classes(["10", "9", "0"])
    ('0', '9', '10')
    """
    names = sorted(names)
    if all(_NUMBER.fullmatch(name) for name in names):
        names.sort(key=float)
    return tuple(names)


def in_words(left_out: Mapping[str, int]) -> str:
    """Counts of suffixes as text, such as "3 .heic, 1 .txt"."""
    return ", ".join(f"{count} {kind}" for kind, count in left_out.items())


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__macosx")) for part in name.lower().split("/"))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not _is_hidden(name)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower() or "without a suffix"


def image_folders(files: Files, under: str = "") -> tuple[set[str], int]:
    """The folders right under a folder that hold images, however deep; and how many images lie right under it."""
    prefix = under + "/" if under else ""
    inside = [name[len(prefix) :] for name in files.sizes if name.startswith(prefix) and _is_image(name)]
    return {name.split("/")[0] for name in inside if "/" in name}, sum("/" not in name for name in inside)
