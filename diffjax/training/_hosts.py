"""Several processes, one run: errors and values that all of them share. All of it is `multihost_utils` of JAX.

action in each process --sync_errors--> its result in each, or one error in all
values of each process --check_same--> equal, or one error in all
arrays over devices    --gather_to_host--> NumPy, whole in each process            is_main: process 0, which writes
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

T = TypeVar("T")


class Refused(ValueError):
    """Raised in every process alike, where one of them got an invalid input."""


class Failed(RuntimeError):
    """Raised in every process alike, where an action failed in one of them."""


def is_main() -> bool:
    """True in process 0, the one that writes metrics and pictures."""
    return jax.process_index() == 0


def gather_texts(text: str) -> list[str]:
    """The texts of all processes, in order; every process calls it."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.array([data.size], np.int32)))
    padded = np.zeros(-(-int(sizes.max()) // 1024) * 1024 or 1024, np.uint8)  # few lengths, few programs
    padded[: data.size] = data
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def sync_errors(action: Callable[[], T]) -> T:
    """Runs an action in every process; where it fails in one, all raise its error. One process alone just runs it.

    Without it the others would wait for the failed process in their next collective until they are ended.

    Args:
      action: a function of no arguments; it must not call a collective itself.

    Returns:
      The action's result in this process.

    Raises:
      Refused: an action raised `ValueError`, `FileNotFoundError` or `NotADirectoryError`.
      Failed: an action raised anything else.
    """
    if jax.process_count() == 1:
        return action()
    result, cause, message = None, None, ""
    try:
        result = action()
    except Exception as error:
        cause, message = error, f"{'2' if is_input_error(error) else '1'}{error or type(error).__name__}"
    failed = [(i, text) for i, text in enumerate(gather_texts(message)) if text]
    if failed:
        i, text = failed[0]
        kind = Refused if text[0] == "2" else Failed
        raise kind(f"{text[1:]} (process {i})") from cause
    return result  # pyright: ignore[reportReturnType]


def run_on_main(action: Callable[[], object]) -> None:
    """Runs an action in process 0 alone; where it fails, all raise its error, as `sync_errors`."""
    sync_errors(lambda: action() if is_main() else None)


def is_input_error(error: Exception) -> bool:
    """True if an error reports an invalid input."""
    return isinstance(error, ValueError | FileNotFoundError | NotADirectoryError)


def check_same(values: Mapping[str, object]) -> None:
    """Raises `Refused` in every process where a value differs between two; it is named, with both values.

    Args:
      values: name -> value, compared by `str`, such as the fields of a configuration and its seed.
    """
    parse = lambda text: dict(line.split("\t", 1) for line in text.split("\n") if line)
    texts = gather_texts("\n".join(f"{name}\t{value!s}".replace("\n", " ") for name, value in values.items()))
    first = parse(texts[0])
    for i, text in enumerate(texts[1:], 1):
        other = parse(text)
        different = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if different:
            name, more = different[0], f" (and {len(different) - 1} more)" if len(different) > 1 else ""
            of_first, of_other = first.get(name, "absent"), other.get(name, "absent")
            raise Refused(f"{name}: {of_first} in process 0, {of_other} in process {i}{more}; start all with the same")


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """The rows [m, ...] of all n processes concatenated, [n m, ...]; every process calls it with equal shapes."""
    return rows if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(rows, tiled=True))


def local_copy(tree: PyTree) -> PyTree:
    """This process's own copy of a tree of arrays [*d] that are replicated on every device."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf, tree)


def gather_to_host(tree: PyTree) -> PyTree:
    """NumPy arrays [*d] of a tree, whole in every process; every process calls it.

    Args:
      tree: arrays [*d], some of which may be sharded over the devices of several processes.
    """
    whole = lambda leaf: isinstance(leaf, np.ndarray) or leaf.is_fully_addressable or leaf.is_fully_replicated
    one = lambda leaf: leaf if whole(leaf) else multihost_utils.process_allgather(leaf, tiled=True)
    return jax.tree.map(lambda leaf: np.asarray(one(leaf)), tree)
