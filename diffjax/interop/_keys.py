"""torch's names and layouts <-> our parameter trees, by one mechanical rule.

    down_blocks.0.resnets.1.conv1.weight  <->  params["down_blocks__0"]["resnets__1"]["conv1"]["kernel"]

Our modules carry the names of the networks that they equal, so there is no table: a number in a name belongs to the
list before it (`.0` is `__0`), and `weight` is whatever our module has in its place:

    kernel       [out, in, h, w] <-> [h, w, in, out]  of a convolution,   [out, in] <-> [in, out]  of a linear layer
    scale, embedding                                                       as they are
    name__       blocks under `lax.scan` (`networks._repeat`): name.0, name.1, ... stacked along a new first axis
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from diffjax._typing import Params

WEIGHTS = ("kernel", "scale", "embedding")


def to_params(tensors: Mapping[str, Any], shapes: PyTree, *, where: str = "tensors") -> Params:
    """A network's parameters from torch's tensors.

    Args:
      tensors: name -> array [...] (or a tensor in a file), exactly those of the network.
      shapes: the pytree of its parameters' shapes, from `parameter_shapes` or `jax.eval_shape` of `network.init`.
      where: the file, for messages.

    Returns:
      A tree like `shapes` of NumPy arrays, in the tensors' own dtype.

    Raises:
      ValueError: a tensor is missing, left over, of another shape, of integers, or not finite; named.
    """
    tree: dict = {}
    for key, (path, layer, _) in _check(tensors, shapes, where).items():
        value = _from_torch(np.asarray(tensors[key]), path[-1])
        if not np.all(np.isfinite(value.astype(np.float32))):
            raise ValueError(f"{where}: {key} has values that are not finite")
        _put(tree, path, layer, value)
    return _stack(tree)


def _check(tensors, shapes, where):
    """The table of names, after all checks of names, shapes and dtypes: before any value is read."""
    wanted = key_table(shapes)
    if missing := sorted(set(wanted) - set(tensors)):
        raise ValueError(f"{where}: no tensor {_some(missing)}")
    if extra := sorted(set(tensors) - set(wanted)):
        raise ValueError(f"{where}: nothing here takes the tensor {_some(extra)}")
    for key, (path, _, shape) in wanted.items():
        tensor = tensors[key]
        if _shape_from_torch(tuple(tensor.shape), path[-1]) != shape:
            raise ValueError(f"{where}: {key} has shape {tuple(tensor.shape)}, which does not give {shape}")
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise ValueError(f"{where}: {key} has dtype {tensor.dtype}; weights are floating-point numbers")
    return wanted


def to_tensors(params: Params) -> dict[str, np.ndarray]:
    """torch's tensors, name -> array [...], from a network's parameters; the inverse of `to_params`.

    Args:
      params: nested dicts of arrays.

    Returns:
      NumPy arrays in torch's layouts, by torch's names.
    """
    leaves = dict(_leaves(params))
    tensors = {}
    for key, (path, layer, _) in key_table(params).items():
        value = np.asarray(leaves[path])
        tensors[key] = np.asarray(_to_torch(value if layer is None else value[layer], path[-1]), order="C")
    return tensors


def key_table(shapes: PyTree) -> dict[str, tuple[tuple[str, ...], int | None, tuple[int, ...]]]:
    """torch's name -> (path in the tree, layer in a stack or None, shape of our leaf there)."""
    table = {}
    for path, leaf in _leaves(shapes):
        stack = next((i for i, name in enumerate(path) if name.endswith("__")), None)
        for layer in [None] if stack is None else range(leaf.shape[0]):
            shape = tuple(leaf.shape) if layer is None else tuple(leaf.shape[1:])
            table[_torch_key(path, layer)] = (path, layer, shape)
    return table


def _torch_key(path, layer):
    *modules, last = (f"{name}{layer}" if name.endswith("__") else name for name in path)
    return re.sub(r"__(\d+)", r".\1", ".".join([*modules, "weight" if last in WEIGHTS else last]))


def _leaves(tree):
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield tuple(entry.key for entry in path), leaf


def _from_torch(value, last):
    if last != "kernel":
        return value
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _shape_from_torch(shape, last):
    if last != "kernel":
        return shape
    return (*shape[2:], *shape[1::-1]) if len(shape) == 4 else shape[::-1]


def _to_torch(value, last):
    if last != "kernel":
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def _put(tree, path, layer, value):
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    if layer is None:
        tree[path[-1]] = value
    else:
        tree.setdefault(path[-1], []).append(value)


def _stack(tree):
    return {key: _stack(value) if isinstance(value, dict) else _whole(value) for key, value in tree.items()}


def _whole(value):
    return np.stack(value) if isinstance(value, list) else value


def _some(keys):
    return ", ".join(key[:200] for key in keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
