"""Parameters as one file for other programs: safetensors; and back, from it or from .npz, never by unpickling.

    params --path -> leaf--> weights.safetensors --names, shapes, dtypes, finite, digests--> params like those given

safetensors has no checksum of the arrays, .npz has one: files written here hold our digests in their metadata, which
are compared where present.
"""

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree

from diffjax._arrays import leaves_by_path
from diffjax._typing import Params
from diffjax.training.checkpoint._digest import digest_part

_DIGESTS = "diffjax_digests"
_NPY_HEADER = 2**16

Leaf: TypeAlias = jax.Array | np.ndarray | jax.ShapeDtypeStruct
"""What has the shape and dtype of an array."""
Opened: TypeAlias = tuple[set[str], dict[str, int], Callable[[str, Leaf], np.ndarray]]
"""The names in a file, name -> digest, and the function that reads an array."""


def save_weights(path: str | Path, params: Params, about: Mapping[str, str] | None = None) -> None:
    """Writes parameters as safetensors, atomically; names are paths such as params/Dense_0/kernel.

    Args:
      path: a file ending in .safetensors.
      params: a pytree of arrays [...], such as the averaged parameters of a state.
      about: name -> text, for the file's metadata.

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
    temporary = path.with_name(path.name + ".tmp")
    safetensors.numpy.save_file(arrays, temporary, metadata={**(about or {}), _DIGESTS: json.dumps(digests)})
    os.replace(temporary, path)


def load_weights(path: str | Path, like: PyTree) -> Params:
    """Parameters from a .safetensors or .npz file, of the structure, shapes and dtypes of those given.

    Args:
      path: the file; names are paths, as `save_weights` writes them.
      like: a pytree of arrays [...] or `jax.ShapeDtypeStruct`s; its values are not used.

    Returns:
      A pytree of arrays [...] like `like`, on the default device.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file cannot be read, a name, shape or dtype differs (the first is named), or an array holds NaN
        or infinity, or differs from what was written.
    """
    path = Path(path)
    open_file = {".safetensors": _open_safetensors, ".npz": _open_npz}.get(path.suffix)
    if open_file is None:
        raise ValueError(f"path: weights are read from .safetensors and .npz alone, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"path: {path}: no such file")
    wanted = leaves_by_path(like)
    with ExitStack() as stack:
        try:
            names, digests, read = open_file(path, stack)
        except Exception as error:
            raise ValueError(f"path: {path} cannot be read: {error}") from error
        if differ := [name for name in (*wanted, *names) if name not in names or name not in wanted]:
            place = "missing in the file" if differ[0] in wanted else "not among the parameters"
            raise ValueError(f"path: {path}: weights of another architecture: {differ[0]} is {place}")
        arrays = {name: _checked(path, name, leaf, read, digests) for name, leaf in wanted.items()}
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(array) for array in arrays.values()])


def _checked(
    path: Path, name: str, leaf: Leaf, read: Callable[[str, Leaf], np.ndarray], digests: Mapping[str, int]
) -> np.ndarray:
    try:
        array = read(name, leaf)
    except Exception as error:
        raise ValueError(f"path: {path}: {name} cannot be read: {error}") from error
    if array.shape != leaf.shape or array.dtype != leaf.dtype:
        saved, wanted = f"{array.dtype}{list(array.shape)}", f"{leaf.dtype}{list(leaf.shape)}"
        raise ValueError(f"path: {path}: weights of another architecture: {name} is {saved}, not {wanted}")
    if name in digests and digests[name] != digest_part(array, (0,) * array.ndim, array.shape):
        raise ValueError(f"path: {path} is damaged: {name} does not match its checksum")
    _check_finite(path, name, array)
    return array


def _check_finite(path: Path, name: str, array: np.ndarray) -> None:
    if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all():
        raise ValueError(f"path: {path}: {name} holds NaN or infinity")


def _open_safetensors(path: Path, stack: ExitStack) -> Opened:
    file = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
    digests = json.loads((file.metadata() or {}).get(_DIGESTS, "{}"))
    return set(file.keys()), digests, lambda name, leaf: file.get_tensor(name)


def _open_npz(path: Path, stack: ExitStack) -> Opened:
    archive = stack.enter_context(zipfile.ZipFile(path))
    arrays = stack.enter_context(np.load(path, allow_pickle=False))

    def read(name: str, leaf: Leaf) -> np.ndarray:
        size, most = archive.getinfo(f"{name}.npy").file_size, leaf.size * leaf.dtype.itemsize + _NPY_HEADER
        if size > most:  # checked before unpacking
            raise ValueError(f"it unpacks to {size} bytes, where {leaf.dtype}{list(leaf.shape)} is expected")
        return arrays[name]

    return set(arrays.files), {}, read
