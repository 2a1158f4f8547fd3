"""Files of tensors: safetensors, whole or in shards, and .npz. Nothing is ever unpickled.

folder -- diffusion_pytorch_model.safetensors or model.safetensors        one file
       -- the same with .index.json: {"weight_map": {tensor: file}}       shards
"""

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
INDEX = ".index.json"


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      ValueError: there is no such file, or it holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON can be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: an object is needed, got {type(content).__name__}")
    return content


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes an object as JSON."""
    Path(path).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Tensors by name, arrays [...] of the file's own dtypes (bfloat16 by ml_dtypes).

    Args:
      path: a .safetensors or .npz file, or a folder with the former, whole or in shards.

    Raises:
      ValueError: no such file; pickled weights only; a shard missing, elsewhere or not as its index says; a damaged
        file. The file is named.
    """
    path = Path(path)
    if path.is_dir():
        path = weights_in(path)
    if path.name.endswith(INDEX):
        return _read_shards(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: weights are read from .safetensors and .npz alone{advice(path)}")
    return _read_safetensors(path)


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
    beside = path.with_name(path.name + ".tmp")
    safetensors.numpy.save_file(arrays, beside, metadata={"format": "pt"})
    os.replace(beside, path)


def weights_in(folder: Path) -> Path:
    """The file of weights in a folder, or the index of its shards.

    Raises:
      ValueError: there is none, or pickled weights only (named), or several of which none has a usual name.
    """
    for name in NAMES:
        for path in (folder / name, folder / (name + INDEX)):
            if path.is_file():
                return path
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{folder}: which of {', '.join(path.name for path in found)}? Give the file itself")
    pickled = sorted(path for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise ValueError(f"{pickled[0]}: there are pickled weights only{advice(pickled[0])}")
    raise ValueError(f"{folder}: there is no .safetensors here")


def advice(path: Path) -> str:
    """Why pickles are refused, and what to do."""
    if path.suffix not in PICKLED:
        return ""
    return "; a pickle can run any code, so none is read: save it as .safetensors where you trust it"


def _read_safetensors(path):
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: no safetensors can be read: {error}") from None


def _read_npz(path):
    try:
        with zipfile.ZipFile(path):  # else NumPy reads a .npy of that name
            pass
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception as error:  # of the zip, of its compression, of headers that are read as Python's literals
        raise ValueError(f"{path}: no .npz can be read: {' '.join(str(error).split())}") from None


def _read_shards(path):
    index = read_json(path)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{path}: weight_map is missing")
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(set(map(str, places.values()))):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{path}: weight_map names {name!r}; shards are .safetensors beside the index")
        if not (path.parent / name).is_file():
            raise ValueError(f"{path}: the shard {name} is missing")
        shard = _read_safetensors(path.parent / name)
        expected = {key for key, value in places.items() if value == name}
        if differ := sorted(expected ^ set(shard)):
            raise ValueError(f"{path}: {differ[0]} is {'not in' if differ[0] in expected else 'also in'} {name}")
        tensors.update(shard)
    about = index.get("metadata") or {}
    if not isinstance(about, dict):
        raise ValueError(f"{path}: metadata is {about!r}; an object is needed")
    total, size = about.get("total_size"), sum(value.nbytes for value in tensors.values())
    if total is not None and total != size:
        raise ValueError(f"{path}: total_size is {total!r}, but the shards hold {size} bytes")
    return tensors
