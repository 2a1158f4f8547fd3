"""Parameters as one file that others read: safetensors; and back, from it or from .npz, never by unpickling.

    params --path -> leaf--> weights.safetensors --names, shapes, dtypes, finite, digests--> params like those given

safetensors has no checksum of the arrays and .npz has one: what we write carries our digests in its metadata, which are
compared where they are there.
"""

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from diffjax.training._about import leaves_by_path
from diffjax.training._digest import digest_part

_DIGESTS = "diffjax_digests"
_NPY_HEADER = 2**16


def save_weights(path: str | Path, params: Any, about: Mapping[str, str] | None = None) -> None:
    """Writes parameters as safetensors, whole or not at all; names are paths such as params/Dense_0/kernel.

    Args:
      path: a file ending in .safetensors.
      params: a pytree of arrays [...], such as the averaged parameters of a state.
      about: name -> text, kept in the file's metadata.

    Raises:
      ValueError: the suffix is another one, or a leaf holds NaN or infinity.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path: weights are written as .safetensors, got {path}")
    arrays = {name: np.array(leaf, order="C") for name, leaf in leaves_by_path(params).items()}
    for name, array in arrays.items():
        _check_finite(path, name, array)
    digests = {name: digest_part(array, (0,) * array.ndim, array.shape) for name, array in arrays.items()}
    beside = path.with_name(path.name + ".tmp")
    safetensors.numpy.save_file(arrays, beside, metadata={**(about or {}), _DIGESTS: json.dumps(digests)})
    os.replace(beside, path)


def load_weights(path: str | Path, like: Any) -> Any:
    """Parameters from a .safetensors or .npz file, of the structure, shapes and dtypes of those given.

    Args:
      path: the file; names are paths, as `save_weights` writes them.
      like: a pytree of arrays [...] or `jax.ShapeDtypeStruct`s; its values are not used.

    Returns:
      A pytree of arrays [...] like `like`, on the default device.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no such file, a name, shape or dtype is another one (the first is named), or an array holds NaN
        or infinity or is not what was written.
    """
    path = Path(path)
    opened = {".safetensors": _open_safetensors, ".npz": _open_npz}.get(path.suffix)
    if opened is None:
        raise ValueError(f"path: weights are read from .safetensors and .npz alone, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"path: {path}: no such file")
    wanted = leaves_by_path(like)
    with ExitStack() as stack:
        try:
            names, digests, read = opened(path, stack)
        except Exception as error:
            raise ValueError(f"path: {path} cannot be read: {error}") from error
        if differ := [name for name in (*wanted, *names) if name not in names or name not in wanted]:
            here = "missing in the file" if differ[0] in wanted else "not among the parameters"
            raise ValueError(f"path: {path}: weights of another architecture: {differ[0]} is {here}")
        arrays = {name: _checked(path, name, leaf, read, digests) for name, leaf in wanted.items()}
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(array) for array in arrays.values()])


def _checked(
    path: Path, name: str, leaf: Any, read: Callable[[str, Any], np.ndarray], digests: Mapping[str, int]
) -> np.ndarray:
    try:
        array = read(name, leaf)
    except Exception as error:
        raise ValueError(f"path: {path}: {name} cannot be read: {error}") from error
    if array.shape != leaf.shape or array.dtype != leaf.dtype:
        there, here = f"{array.dtype}{list(array.shape)}", f"{leaf.dtype}{list(leaf.shape)}"
        raise ValueError(f"path: {path}: weights of another architecture: {name} is {there}, not {here}")
    if name in digests and digests[name] != digest_part(array, (0,) * array.ndim, array.shape):
        raise ValueError(f"path: {path} is damaged: {name} does not match its checksum")
    _check_finite(path, name, array)
    return array


def _check_finite(path: Path, name: str, array: np.ndarray) -> None:
    if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all():
        raise ValueError(f"path: {path}: {name} holds NaN or infinity")


def _open_safetensors(path: Path, stack: ExitStack) -> tuple[set[str], dict[str, int], Callable[..., np.ndarray]]:
    file = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
    digests = json.loads((file.metadata() or {}).get(_DIGESTS, "{}"))
    return set(file.keys()), digests, lambda name, leaf: file.get_tensor(name)


def _open_npz(path: Path, stack: ExitStack) -> tuple[set[str], dict[str, int], Callable[..., np.ndarray]]:
    archive = stack.enter_context(zipfile.ZipFile(path))
    arrays = stack.enter_context(np.load(path, allow_pickle=False))

    def read(name: str, leaf: Any) -> np.ndarray:
        size, most = archive.getinfo(f"{name}.npy").file_size, leaf.size * leaf.dtype.itemsize + _NPY_HEADER
        if size > most:  # before it is unpacked
            raise ValueError(f"it unpacks to {size} bytes, where {leaf.dtype}{list(leaf.shape)} is expected")
        return arrays[name]

    return set(arrays.files), {}, read
