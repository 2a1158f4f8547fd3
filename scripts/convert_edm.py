"""EDM's and EDM2's pickled networks -> safetensors, without running any of the code that is inside them.

    python scripts/convert_edm.py network.pkl network.safetensors     needs torch (pip install torch), for the bytes
    time: seconds;  expected: the number of tensors and of parameters, and beside the file a .json of what every
    module was made with (numbers, words and lists)

The names stay EDM's own, and no network of diffjax reads them yet: they are defined by EDM's code alone, whose licence
is such that diffjax keeps away from it. What is written is for your own network.

Such a pickle asks its reader to compile source text that it carries. Here an unpickler makes records in place of
objects and knows a handful of names; any other name is refused, before anything is made of it:

    torch_utils.persistence._reconstruct_persistent_obj(meta)    a record of meta["state"]; its source is not looked at
    torch.nn.modules.*                                           a record
    dnnlib.util.EasyDict, collections.OrderedDict, set           dict, dict, set
    torch.storage._load_from_bytes, torch._utils._rebuild_*      tensors; the bytes by torch.load(weights_only=True)

A tensor's name is its path through `_modules`, `_parameters` and `_buffers`, as torch's own state_dict has it. Tried on
pickles made for the purpose (tests/parity/test_convert_edm.py); one that names something else is refused, not guessed.
"""

import argparse
import collections
import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from diffjax.interop import write_tensors


class Record:
    """An object of the pickle, as its attributes alone."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any):
        self.state = state if isinstance(state, dict) else {}


class Refused(Exception):
    """The pickle names something that is not needed for a network's tensors."""


class Unpickler(pickle.Unpickler):
    """Makes records, dictionaries and tensors, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in NAMES:
            return NAMES[module, name]
        if module.startswith("torch.nn.modules.") and name.isidentifier():
            return Record
        if module == "torch" and name in DTYPES:
            return name
        raise Refused(f"it asks for {module}.{name}")


def _persistent(meta: Any) -> Record:
    record = Record()
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
        raise Refused("a persistent object without a state")
    record.__setstate__(meta["state"])
    return record


def _bytes(text: str, encoding: str) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused("bytes in an encoding that no pickle has")
    return text.encode("latin1")


def _storage(content: bytes) -> Any:
    import torch

    try:
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:
        raise Refused(f"the bytes of a tensor are no storage: {_line(error)}") from None


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Any:
    import torch

    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and not 0 <= last < storage._untyped_storage.nbytes() // storage.dtype.itemsize:
        raise Refused(f"a tensor of size {tuple(size)} is beyond its storage")
    return torch._utils._rebuild_tensor_v2(storage, offset, tuple(size), tuple(stride), False, {})


DTYPES = ("float16", "bfloat16", "float32", "float64", "int32", "int64", "uint8", "bool", "contiguous_format")
NAMES = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("dnnlib.util", "EasyDict"): type("EasyDict", (dict,), {"__setstate__": lambda self, state: self.update(state)}),
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): _bytes,  # bytes, in old protocols
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
    ("torch", "device"): lambda *args: args,
    ("torch", "Size"): tuple,
}


def read(path: Path) -> Any:
    """What the pickle holds: records, dictionaries, tensors.

    Raises:
      ValueError: it names something that is not known here, or it is no pickle; in one line.
    """
    try:
        with open(path, "rb") as file:
            return Unpickler(file).load()
    except Exception as error:  # a pickle can make its reader raise anything
        raise ValueError(f"{path}: refused: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def tensors_of(record: Record, prefix: str = "") -> dict[str, np.ndarray]:
    """Parameters and persistent buffers by name, arrays [...]."""
    state, found = record.state, {}
    hidden = state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in (state.get(kind) or {}).items():
            if value is not None and name not in hidden:
                found[prefix + name] = _array(value)
    for name, module in (state.get("_modules") or {}).items():
        if isinstance(module, Record):
            found |= tensors_of(module, f"{prefix}{name}.")
    return found


def _array(value: Any) -> np.ndarray:
    value = value.detach()
    if str(value.dtype) == "torch.bfloat16":  # which NumPy alone does not have
        return value.float().numpy().astype(ml_dtypes.bfloat16)
    return value.numpy()


def settings_of(record: Record, prefix: str = "") -> dict[str, dict[str, Any]]:
    """Module -> what it was made with: attributes that JSON can hold."""
    found = {name: value for name, value in record.state.items() if not name.startswith("_") and _plain(value)}
    settings = {prefix.rstrip("."): found}
    for name, module in (record.state.get("_modules") or {}).items():
        if isinstance(module, Record):
            settings |= settings_of(module, f"{prefix}{name}.")
    return settings


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def convert(source: Path, target: Path, which: str) -> dict[str, np.ndarray]:
    """Writes the tensors of the network called `which`, and its settings beside them; returns the tensors [...]."""
    content = read(source)
    network = content.get(which) if isinstance(content, dict) else content
    if not isinstance(network, Record):
        parts = content.items() if isinstance(content, dict) else ()
        names = [str(name) for name, value in parts if isinstance(value, Record)]
        raise ValueError(f"{source}: there is no network {which!r}; there are {', '.join(names) or 'none'}")
    try:
        tensors, settings = tensors_of(network), json.dumps(settings_of(network), indent=2)
    except Exception as error:  # its records hold anything
        raise ValueError(f"{source}: {which!r} is no network: {type(error).__name__}: {_line(error)}") from None
    write_tensors(target, tensors)
    target.with_suffix(".json").write_text(settings + "\n", encoding="utf-8")
    return tensors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a .pkl")
    parser.add_argument("target", type=Path, help="a .safetensors")
    parser.add_argument("--which", default="ema", help="the network's name in the pickle (ema)")
    options = parser.parse_args()
    try:
        tensors = convert(options.source, options.target, options.which)
    except (ValueError, OSError) as error:
        print(_line(error), file=sys.stderr)
        return 2
    print(f"{options.target}: {len(tensors)} tensors, {sum(value.size for value in tensors.values())} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
