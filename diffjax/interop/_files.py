"""Files of tensors: safetensors, whole or in shards, and .npz. Nothing is ever unpickled.

folder -- diffusion_pytorch_model.safetensors or model.safetensors        one file
       -- the same with .index.json: {"weight_map": {tensor: file}}       shards

file --> size, kind --> header: names, dtypes, shapes (`look_up`) --> compared with what is wanted --> values

A file is not trusted: pipes and devices are never opened, and a header is read and checked before memory is allocated
for what it declares.
"""

import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from diffjax._arrays import check_npy_size, in_bytes, npy_header

NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
INDEX = ".index.json"
LARGEST_JSON = 2**24
"""Bytes of a configuration or an index."""
LARGEST_HEADER = 2**26
"""Bytes of the header of a safetensors file."""
LARGEST_RATIO, SMALL = 20, 2**26
"""An .npz may hold so many times its own bytes, or so many bytes in any case."""
DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "C64": "<c8", "BOOL": "?"},
    **{"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2},
    **{f"{kind.upper()}{8 * size}": f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)},
}
_SHARD = re.compile(r"-(\d+)-of-(\d+)(?=\.)")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape and dtype; `np.asarray` of it reads its values [...]."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


def check_regular(path: str | Path, largest: float = math.inf) -> None:
    """Raises `ValueError` where a path, or what a link there leads to, is no regular file of at most `largest` bytes.

    A pipe would be waited for, and a device read, without end.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise ValueError(f"{path}: it is {kind}; a regular file is needed")
    if status.st_size > largest:
        raise ValueError(f"{path}: it has {in_bytes(status.st_size)}; at most {in_bytes(largest)} are read")


def read_regular(path: str | Path, largest: int) -> bytes:
    """The bytes of a regular file.

    Raises:
      ValueError: it is something else, cannot be read, or has more than `largest` bytes.
    """
    check_regular(path, largest)
    try:
        with open(path, "rb") as file:
            content = file.read(largest + 1)  # the system's own files say that they have none
    except OSError as error:
        raise ValueError(f"{path}: it cannot be read: {error.strerror or error}") from None
    if len(content) > largest:
        raise ValueError(f"{path}: it has more than {in_bytes(largest)}, which is the most that is read")
    return content


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      ValueError: there is no such file, it is no regular one or too large, it holds something else, or a key twice.
    """
    try:
        content = parse_json(read_regular(path, LARGEST_JSON))
    except (ValueError, RecursionError) as error:
        text = str(error)
        raise ValueError(text if text.startswith(f"{path}: ") else f"{path}: no JSON can be read: {text}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: an object is needed, got {type(content).__name__}")
    return content


def parse_json(content: bytes) -> Any:
    """The content of JSON; a `ValueError` where an object has a key twice, which readers interpret differently."""
    return json.loads(content.decode("utf-8"), object_pairs_hook=_without_duplicates)


def _without_duplicates(pairs):
    content = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"the key {_cut(name)!r} is there twice")
        content[name] = value
    return content


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes an object as JSON."""
    Path(path).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Tensors by name, arrays [...] of the file's own dtypes (bfloat16 and float8 by ml_dtypes).

    Args:
      path: a .safetensors or .npz file, or a folder with the former, whole or in shards.

    Raises:
      ValueError: no such file, or no regular one; pickled weights only; a shard missing, elsewhere or not as its index
        says; a damaged file; a name twice; an .npz that unpacks to far more than it is. The file is named.
    """
    return {name: np.asarray(tensor) for name, tensor in look_up(path).items()}


def look_up(path: str | Path) -> dict[str, Stored]:
    """The tensors of a file by name, as `Stored`: their values are read when they are used.

    Raises:
      ValueError: as `read_tensors`.
    """
    path = Path(path)
    if path.is_dir():
        path = weights_in(path)
    if _is_index(path):
        return _look_up_shards(path)
    if path.suffix == ".npz":
        return _look_up_npz(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: weights are read from .safetensors and .npz alone{advice(path)}")
    return _look_up_safetensors(path)


def write_tensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors, name -> array [...], as safetensors that torch's libraries read; whole or not at all.

    Raises:
      ValueError: the suffix is another one, or a tensor is not finite.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: weights are written as .safetensors")
    arrays = {key: np.asarray(value, order="C") for key, value in tensors.items()}
    for key, value in arrays.items():
        if not np.all(np.isfinite(value.astype(np.float32))):
            raise ValueError(f"{path}: {key} has values that are not finite")
    temporary = path.with_name(path.name + ".tmp")
    safetensors.numpy.save_file(arrays, temporary, metadata={"format": "pt"})
    os.replace(temporary, path)


def weights_in(folder: Path, variant: str | None = None) -> Path:
    """The file of weights in a folder, or the index of its shards.

    Args:
      folder: where they are.
      variant: "fp16" for diffusion_pytorch_model.fp16.safetensors and the like.

    Raises:
      ValueError: there is none or no regular one, or pickled weights only (named), or several of which none has a usual
        name.
    """
    wanted = [place for name in NAMES for place in _places(name, variant)]
    for name in wanted:
        if os.path.lexists(folder / name):
            check_regular(folder / name)
            return folder / name
    present = sorted(path.name for path in folder.glob("*.safetensors"))
    names = ", ".join(present[:5]) + (f" and {len(present) - 5} more" if len(present) > 5 else "")
    if variant is not None and present:
        raise ValueError(f"{folder}: variant {variant!r} is {wanted[0]} or {wanted[2]}, but there is {names}")
    parts = [match for name in present if (match := _SHARD.search(name)) and int(match[2]) > 1]
    if parts:
        index = _SHARD.sub("", parts[0].string) + INDEX
        raise ValueError(
            f"{folder}: {names}: shards are read by their index, and there is none; fetch {index} from where they are "
            "from, too"
        )
    if len(present) == 1:
        check_regular(folder / present[0])
        return folder / present[0]
    if present:
        known = [
            name.split(".")[1] for name in present if any(name in _places(one, name.split(".")[1]) for one in NAMES)
        ]
        remedy = f" or take variant={known[0]!r} or another," if known else ""
        raise ValueError(
            f"{folder}: which of {names}? Name the right one {NAMES[0]},{remedy} or give the file itself to "
            "`read_tensors`"
        )
    pickled = sorted(path for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise ValueError(f"{pickled[0]}: there are pickled weights only{advice(pickled[0])}")
    raise ValueError(f"{folder}: there is no .safetensors here")


def _places(name, variant):
    """The names of the file and of the index of its shards, as diffusers and transformers write a variant of it."""
    if variant is None:
        return name, name + INDEX
    stem, suffix = name.rsplit(".", 1)
    return f"{stem}.{variant}.{suffix}", f"{name}.index.{variant}.json"


def _is_index(path):
    return ".index." in path.name and path.suffix == ".json"


def advice(path: Path) -> str:
    """Why pickles are refused, and what to do."""
    if path.suffix not in PICKLED:
        return ""
    return "; a pickle can run any code, so none is read: save it as .safetensors where you trust it"


def _look_up_safetensors(path):
    check_regular(path)
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > LARGEST_HEADER:
                raise ValueError(f"its header has {in_bytes(size)}; at most {in_bytes(LARGEST_HEADER)} are read")
            header = file.read(size)
        with safetensors.safe_open(path, framework="numpy"):  # which checks that places and sizes fit the file
            header = parse_json(header)
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: no safetensors can be read: {error}") from None
    header.pop("__metadata__", None)
    tensors = {}
    for name, about in header.items():
        if about["dtype"] not in DTYPES:
            raise ValueError(f"{path}: {_cut(name)} has dtype {about['dtype']}; diffjax reads {', '.join(DTYPES)}")
        shape, dtype = tuple(about["shape"]), np.dtype(DTYPES[about["dtype"]])
        tensors[name] = Stored(shape, dtype, _Values(path, 8 + size + about["data_offsets"][0], shape, dtype))
    return tensors


class _Values(NamedTuple):
    """Reads an array [...] from its place in a file."""

    path: Path
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def __call__(self) -> np.ndarray:
        values = np.empty(math.prod(self.shape) * self.dtype.itemsize, np.uint8)
        with open(self.path, "rb") as file:
            file.seek(self.start)
            if file.readinto(values.data) != values.size:
                raise ValueError(f"{self.path}: it has become shorter while it was read")
        return values.view(self.dtype).reshape(self.shape)


def _look_up_npz(path):
    check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            held, holds = path.stat().st_size, sum(member.file_size for member in members)
            if holds > max(SMALL, LARGEST_RATIO * held):
                raise ValueError(
                    f"it has {in_bytes(held)} and unpacks to {in_bytes(holds)}, more than {LARGEST_RATIO} times as "
                    "much; write it by np.savez, or as .safetensors"
                )
            tensors = {}
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in tensors:
                    raise ValueError(f"{_cut(name)} is there twice")
                with archive.open(member) as file:
                    shape, _, dtype = npy_header(file)
                    check_npy_size(shape, dtype, member.file_size - file.tell())
                tensors[name] = Stored(shape, dtype, _Member(path, member.filename))
    except Exception as error:  # of the zip, of its compression, of headers that are read as Python's literals
        raise _no_npz(path, error) from None
    return tensors


class _Member(NamedTuple):
    """Reads an array of an .npz."""

    path: Path
    name: str

    def __call__(self) -> np.ndarray:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.name) as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:
            raise _no_npz(self.path, error) from None


def _no_npz(path, error):
    return ValueError(f"{path}: no .npz can be read: {' '.join(str(error).split())}")


def _look_up_shards(path):
    index = read_json(path)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{path}: weight_map is missing")
    tensors: dict[str, Stored] = {}
    expected: dict[str, set[str]] = {}
    for key, place in places.items():
        expected.setdefault(str(place), set()).add(key)
    for name, keys in sorted(expected.items()):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{path}: weight_map names {name!r}; shards are .safetensors in the index's folder")
        if not os.path.lexists(path.parent / name):
            raise ValueError(f"{path}: the shard {name} is missing")
        shard = _look_up_safetensors(path.parent / name)
        if differ := sorted(keys ^ set(shard)):
            raise ValueError(f"{path}: {_cut(differ[0])} is {'not in' if differ[0] in keys else 'also in'} {name}")
        tensors.update(shard)
    about = index.get("metadata") or {}
    if not isinstance(about, dict):
        raise ValueError(f"{path}: metadata is {about!r}; an object is needed")
    total, size = about.get("total_size"), sum(math.prod(one.shape) * one.dtype.itemsize for one in tensors.values())
    if total is not None and total != size:
        raise ValueError(f"{path}: total_size is {total!r}, but the shards hold {size} bytes")
    return tensors


def _cut(name):
    return name if len(name) <= 200 else f"{name[:200]}..."
