"""Several processes, one run: how they meet, and that they mean the same. All of it is `jax.distributed`.

    join --> process i of n --check_same--> one configuration, one seed --> agree | fetch, all together
                                                                         is_main: who writes

Process 0 holds the coordination service. A process that dies is missed after `heartbeat` seconds; then JAX ends all
others (abort, code 134): no Python runs, and a restart begins from the newest checkpoint.

The service is neither encrypted nor authenticated: keep its port inside the cluster. On loopback addresses it is bound
to loopback alone.
"""

import functools
import ipaddress
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffjax.training._roll_call import Absent, call_roll
from diffjax.training._signals import Stopped

HEARTBEAT = 30
_PATIENCE = 1800  # seconds to wait at the end for process 0, which may still be measuring; the dead are missed earlier
_ALONE = ("coordinator_address should be defined", "must be called before any JAX calls")
"""What JAX says where it knows no cluster, and where it was started before: by a notebook, or by a test."""
T = TypeVar("T")


class Refused(ValueError):
    """Raised in every process alike, where the input was bad in one of them."""


class Failed(RuntimeError):
    """Raised in every process alike, where something went wrong in one of them."""


class Unreachable(RuntimeError):
    """Raised by `join` where the other processes did not answer in time; starting again may help."""


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat: int = HEARTBEAT,
    timeout: int = 300,
    tell: Callable[[str], None] = lambda text: None,
) -> bool:
    """Joins the processes of a run; before any JAX computation. One process alone stays as it is.

    With no coordinator given, JAX looks for a cluster it knows (SLURM, Kubernetes, Cloud TPU, Open MPI) and takes all
    three from there. From here on an error that nobody catches ends this process at once, by `leave`; to end one
    process alone, call that and not `sys.exit`, which waits for the others.

    A script that called `jax.distributed.initialize` itself stays in that run, with its heartbeat. JAX's preemption
    service then stays on: outside of `train`, the first SIGTERM goes to it and ends nothing.

    Args:
      coordinator: `host:port` of process 0.
      num_processes: how many there are, all told; 1 means alone, wherever this runs.
      process_id: which one this is, from 0.
      heartbeat: seconds after which a process that is not heard of counts as dead.
      timeout: seconds to wait for the others at the start.
      tell: told at once, in a line, for whom this process waits, where a coordinator is given.

    Returns:
      Whether it joined anything. JAX's devices are not started: what they shall be can still be said.

    Raises:
      ValueError: the three do not go together.
      Unreachable: the others did not come in time, or the coordinator's port is in use.
    """
    _check(coordinator, num_processes, process_id, heartbeat)
    if timeout < 1:
        raise ValueError(f"join-timeout: at least one second, got {timeout}")
    if jax.distributed.is_initialized():
        sys.excepthook = functools.partial(_end, sys.excepthook)
        return True
    if num_processes == 1:
        return False
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away: `train` hears it itself
    bind = coordinator if coordinator is not None and _is_loopback(coordinator) else None
    if coordinator is not None and num_processes is not None and process_id is not None:
        host, _, port = coordinator.rpartition(":")
        address = host.strip("[]"), int(port)
        try:
            call_roll(address, "" if bind is None else address[0], num_processes, process_id, timeout, tell)
        except Absent as error:
            raise Unreachable(
                f"coordinator: {coordinator}: no run of {num_processes} within {timeout} s: {error}; start them all "
                f"with the same --coordinator and --num-processes, each with its own --process-id"
            ) from None
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=heartbeat,
            initialization_timeout=timeout,
            shutdown_timeout_seconds=_PATIENCE,
            coordinator_bind_address=bind,
        )
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise Unreachable(f"coordinator: {coordinator or 'the cluster'}: no run of {num_processes}: {reason}") from None
    except Exception as error:
        if coordinator is None and any(known in str(error) for known in _ALONE):
            return False
        reason = " ".join(str(error).split())
        raise ValueError(f"coordinator: cannot join: {reason} (--num-processes 1 runs alone)") from error
    sys.excepthook = functools.partial(_end, sys.excepthook)
    return True


def leave(code: int) -> None:
    """Ends this process at once where it is one of several; one alone goes on.

    For what went wrong in it: at its ordinary end JAX waits for the others, which wait for this one in a computation.
    So they are ended within `heartbeat` seconds. Process 0, on which all hang, lets others say why first.

    Args:
      code: the exit code, a scalar.
    """
    if jax.distributed.is_initialized():
        time.sleep(2 if is_main() else 0)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end(show: Callable[..., Any], kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """What Python does with an error that nobody caught; those that all processes raise leave them to end together."""
    show(kind, error, trace)
    if not isinstance(error, Refused | Failed | Stopped):
        leave(130 if isinstance(error, KeyboardInterrupt) else 1)


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None, heartbeat: int) -> None:
    if heartbeat < 1:
        raise ValueError(f"heartbeat: at least one second, got {heartbeat}")
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"num-processes: at least 1, got {num_processes}")
    if process_id is not None and not 0 <= process_id < (num_processes or process_id + 1):
        raise ValueError(f"process-id: from 0 to num-processes - 1, got {process_id} of {num_processes}")
    given = {"coordinator": coordinator, "num-processes": num_processes, "process-id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < 3 and num_processes != 1:
        raise ValueError(f"{missing[0]}: coordinator, num-processes and process-id go together, got only some of them")
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"coordinator: host:port is needed, got {coordinator}")


def _is_loopback(coordinator: str) -> bool:
    host = coordinator.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_main() -> bool:
    """Whether this is process 0, the one that writes metrics and pictures."""
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


def agree(action: Callable[[], T]) -> T:
    """Runs an action in every process; where one fails, all raise its error. Nothing to do for one process alone.

    Without it the others would wait for the failed one in their next computation until they are ended.

    Args:
      action: what each does for itself; it must not compute together with the others.

    Raises:
      Refused: an action raised ValueError or found a file missing.
      Failed: an action raised anything else.
    """
    if jax.process_count() == 1:
        return action()
    result, cause, said = None, None, ""
    try:
        result = action()
    except Exception as error:
        cause, said = error, f"{'2' if is_bad_input(error) else '1'}{error or type(error).__name__}"
    failed = [(i, text) for i, text in enumerate(gather_texts(said)) if text]
    if failed:
        i, text = failed[0]
        kind = Refused if text[0] == "2" else Failed
        raise kind(f"{text[1:]} (process {i})") from cause
    return result  # pyright: ignore[reportReturnType]


def agree_on_main(action: Callable[[], Any]) -> None:
    """Runs an action in process 0 alone; where it fails, all raise its error, as `agree`."""
    agree(lambda: action() if is_main() else None)


def is_bad_input(error: Exception) -> bool:
    """Whether an error says that the input was bad."""
    return isinstance(error, ValueError | FileNotFoundError | NotADirectoryError)


def check_same(values: Mapping[str, Any]) -> None:
    """Raises `Refused` in every process where a value differs between two; it is named, with both.

    Args:
      values: name -> what has a `str` that says it all, such as the fields of a configuration and its seed.
    """
    lines = lambda found: dict(line.split("\t", 1) for line in found.split("\n") if line)
    texts = gather_texts("\n".join(f"{name}\t{value!s}".replace("\n", " ") for name, value in values.items()))
    first = lines(texts[0])
    for i, text in enumerate(texts[1:], 1):
        other = lines(text)
        different = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if different:
            name, more = different[0], f" (and {len(different) - 1} more)" if len(different) > 1 else ""
            there, here = first.get(name, "absent"), other.get(name, "absent")
            raise Refused(f"{name}: {there} in process 0, {here} in process {i}{more}; start all with the same")


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """The rows [m, ...] of all processes one after the other, [n m, ...]; every process calls it with equal shapes."""
    return rows if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(rows, tiled=True))


def local_copy(tree: Any) -> Any:
    """A tree whose arrays, any shape, are whole on every device, for this process to compute with by itself."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf, tree)


def fetch(tree: Any) -> Any:
    """NumPy arrays of the same shapes as those of a tree, whole in every process; every process calls it.

    Args:
      tree: arrays [...], some of which may be spread over the devices of several processes.
    """
    whole = lambda leaf: isinstance(leaf, np.ndarray) or leaf.is_fully_addressable or leaf.is_fully_replicated
    one = lambda leaf: leaf if whole(leaf) else multihost_utils.process_allgather(leaf, tiled=True)
    return jax.tree.map(lambda leaf: np.asarray(one(leaf)), tree)
