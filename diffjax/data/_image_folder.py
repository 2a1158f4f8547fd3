"""Images in a folder or a zip, a folder a class: PATH/UNDER/CLASS/.../a.jpg; or all of one kind: PATH/UNDER/a.jpg.

Listed once, decoded when asked for. The order is that of the paths, so that it is the same on every machine.
"""

import hashlib
import zipfile
import zlib
from pathlib import Path

import numpy as np

from diffjax.data._files import Files, open_files
from diffjax.data._pictures import SUFFIXES, decode_image


class ImageFolder:
    """Items `folder[i] -> (image uint8 [h, w, c], label)`, for `from_items`.

    Args:
      path: a folder, or a zip, which is read as it is (nothing is unpacked to the disk), or `open_files` of either.
      under: the folder within that holds the classes, such as "cifar10/train"; "" is the outermost.
      size: pixels a side: the shorter side is scaled to it and the middle cut out. None leaves images as they are;
        then all must be of one shape.
      channels: 3 (colours) or 1 (grey).

    Attributes:
      classes: names of the class folders, sorted, or None where the images lie in no folders.
      labels: int32 [n], places in `classes`, or None.
      names: paths of the images within `path`, sorted.

    Raises:
      ValueError: there is no such folder or zip, or no image in it; images lie both beside and in class folders; a
        member of the zip has an unsafe path or size. When an item is asked for: its file cannot be decoded; its path is
        in the message.
    """

    def __init__(self, path: str | Path | Files, *, under: str = "", size: int | None = None, channels: int = 3):
        if size is not None and size < 1:
            raise ValueError(f"size: at least one pixel is needed, got {size}")
        if channels not in (1, 3):
            raise ValueError(f"channels: 1 or 3 are needed, got {channels}")
        self.files = open_files(path) if isinstance(path, str | Path) else path
        self.size, self.channels = size, channels
        prefix = under.strip("/") + "/" if under.strip("/") else ""
        self.names = sorted(name for name in self.files.sizes if name.startswith(prefix) and _is_image(name))
        if not self.names:
            raise ValueError(f"path: no image in {self._where(prefix)} ({', '.join(SUFFIXES)})")
        folders = [name[len(prefix) :].split("/")[:-1] for name in self.names]
        loose = [name for name, inside in zip(self.names, folders, strict=True) if not inside]
        if loose and len(loose) < len(self.names):
            raise ValueError(f"path: {self._where(loose[0])} lies beside folders of images: in which class is it?")
        self.classes = None if loose else tuple(sorted({inside[0] for inside in folders}))
        self.labels = None
        if self.classes is not None:
            place = {name: i for i, name in enumerate(self.classes)}
            self.labels = np.array([place[inside[0]] for inside in folders], np.int32)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int32 | None]:
        name = self.names[index]
        try:
            data = self.files.read(name)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{self._where(name)}: cannot be read: {error}") from error
        image = decode_image(data, self._where(name), size=self.size, channels=self.channels)
        return image, None if self.labels is None else self.labels[index]

    def describe(self, index: int) -> str:
        """The path of an item."""
        return self._where(self.names[index])

    def digest(self) -> str:
        """SHA-256 of the names and sizes of the files; their contents are not read."""
        lines = (f"{name} {self.files.sizes[name]}\n" for name in self.names)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _where(self, name: str) -> str:
        return f"{self.files.path}/{name}"


def _is_image(name: str) -> bool:
    parts = name.lower().split("/")
    return parts[-1].endswith(SUFFIXES) and not any(part.startswith((".", "__macosx")) for part in parts)


def image_folders(files: Files, under: str = "") -> tuple[set[str], bool]:
    """The folders right under a folder that hold images, however deep; and whether images lie right under it."""
    prefix = under + "/" if under else ""
    inside = [name[len(prefix) :] for name in files.sizes if name.startswith(prefix) and _is_image(name)]
    return {name.split("/")[0] for name in inside if "/" in name}, any("/" not in name for name in inside)
