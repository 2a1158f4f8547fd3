"""The start and the end of a run of several processes, around `jax.distributed`.

    process 0       listens at the coordinator's address -------- all are connected: "go" --> closes it --+
    process i > 0   connects, again and again --> sends "i of n" --> waits for "go" ----------------------+
                                                                                                          v
                    jax.distributed.initialize --> process i of n --> a computation of all --> abort, where one fails

JAX by itself would wait in silence for a missing process, and then abort; so the processes connect to each other first,
by a line of text each way over TCP, at the port that JAX's coordination service then uses.

Process 0 holds the service. A process that dies is detected after `heartbeat` seconds; then JAX ends all others (abort,
code 134): no Python runs, and a restart begins from the newest checkpoint. The service is neither encrypted nor
authenticated: keep its port inside the cluster. On loopback addresses it is bound to loopback alone.
"""

import contextlib
import errno
import functools
import ipaddress
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable
from types import TracebackType

import jax

from diffjax._numbers import checked_numbers
from diffjax.training._hosts import Failed, Refused, is_main
from diffjax.training._signals import Stopped

HEARTBEAT = 30
_PATIENCE = 1800  # seconds to wait at the end for process 0, which may be measuring; dead ones are detected earlier
_NO_CLUSTER = ("coordinator_address should be defined", "must be called before any JAX calls")
"""JAX's errors where it knows no cluster, and where it was started before: by a notebook, or by a test."""
_GREETING = "diffjax process "
_GO = b"go\n"
_RETRY = 0.2  # seconds from one attempt to connect to the next


class Unreachable(RuntimeError):
    """Raised by `initialize` where the other processes did not connect in time; starting all again may help."""


@checked_numbers
def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat: int = HEARTBEAT,
    timeout: int = 300,
    abort_on_error: bool = False,
    log: Callable[[str], None] = lambda text: None,
) -> bool:
    """Connects the processes of a run, before any JAX computation. A single process stays as it is.

    Without a coordinator, JAX detects the cluster (SLURM, Kubernetes, Cloud TPU, Open MPI) and takes all three from
    it. To end one process of several, call `abort` and not `sys.exit`, which waits for the others.

    A script that called `jax.distributed.initialize` itself remains in that run, with its heartbeat. JAX's preemption
    service then stays on, and takes the first SIGTERM outside of `train`; here it is switched off.

    Args:
      coordinator: `host:port` of process 0.
      num_processes: the number of processes; 1 means a single process, wherever this runs.
      process_id: the index of this one, from 0.
      heartbeat: seconds without a sign of life after which a process counts as dead.
      timeout: seconds to wait for the others at the start.
      abort_on_error: replaces `sys.excepthook` for the rest of the process: an uncaught error is shown as before, then
        `abort` ends this process at once, so that the others do not wait for it in a computation.
      log: called at once with a line on which processes this one waits for, where a coordinator is given.

    Returns:
      True if this process is one of several. JAX's devices are not started: they can be configured afterwards.

    Raises:
      ValueError: some of the three are missing, or one is out of range.
      Unreachable: the others did not connect in time, or the coordinator's port is in use.
    """
    _check(coordinator, num_processes, process_id, heartbeat)
    if timeout < 1:
        raise ValueError(f"join-timeout: at least one second, got {timeout}")
    several = jax.distributed.is_initialized() or _initialize_jax(
        coordinator, num_processes, process_id, heartbeat, timeout, log
    )
    if several and abort_on_error:
        sys.excepthook = functools.partial(_show_and_abort, sys.excepthook)
    return several


def _initialize_jax(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat: int,
    timeout: int,
    log: Callable[[str], None],
) -> bool:
    """`wait_for_processes`, then `jax.distributed.initialize`; False for a single process."""
    if num_processes == 1:
        return False
    jax.config.update("jax_enable_preemption_service", False)  # it would hide SIGTERM from `train`
    bind = coordinator if coordinator is not None and _is_loopback(coordinator) else None
    if coordinator is not None and num_processes is not None and process_id is not None:
        host, _, port = coordinator.rpartition(":")
        address = host.strip("[]"), int(port)
        try:
            wait_for_processes(address, "" if bind is None else address[0], num_processes, process_id, timeout, log)
        except RendezvousError as error:
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
        if coordinator is None and any(known in str(error) for known in _NO_CLUSTER):
            return False
        reason = " ".join(str(error).split())
        raise ValueError(f"coordinator: cannot join: {reason} (--num-processes 1 runs alone)") from error
    return True


def abort(code: int) -> None:
    """Ends this process at once, by `os._exit`, where it is one of several; a single process continues.

    To be called where an error concerns this process only: at a normal exit JAX waits for the others, which wait for
    this one in a computation. JAX ends them within `heartbeat` seconds. Process 0, which holds the service, waits two
    seconds, so that others can print their errors first.

    Args:
      code: the exit code, a scalar.
    """
    if jax.distributed.is_initialized():
        time.sleep(2 if is_main() else 0)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


Hook = Callable[[type[BaseException], BaseException, TracebackType | None], object]


def _show_and_abort(show: Hook, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook` of one of several processes; after an error that all of them raise they end normally."""
    show(kind, error, trace)
    if not isinstance(error, Refused | Failed | Stopped):
        abort(130 if isinstance(error, KeyboardInterrupt) else 1)


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


class RendezvousError(Exception):
    """Some processes did not connect in time, or the address cannot be bound; the text says which."""


def wait_for_processes(
    address: tuple[str, int], bind: str, processes: int, process: int, timeout: float, log: Callable[[str], None]
) -> None:
    """Returns in every process when all are connected.

    Args:
      address: host and port of process 0, as the others reach it.
      bind: the address that process 0 listens at; "" for all addresses of its machine.
      processes: the number of processes.
      process: the index of this one, from 0.
      timeout: seconds to wait.
      log: called at once with a line on which processes this one waits for, and for how long.

    Raises:
      RendezvousError: some did not connect, or the port is in use.
    """
    where, deadline = f"{address[0]}:{address[1]}", time.monotonic() + timeout
    if process == 0:
        log(f"process 0 waits at {where} for {processes - 1} more, up to {timeout:g} s")
        _accept_all(bind, address[1], processes, deadline)
    else:
        log(f"process {process} of {processes} waits for process 0 at {where}, up to {timeout:g} s")
        _connect(address, process, processes, deadline)


def _accept_all(bind: str, port: int, processes: int, deadline: float) -> None:
    try:
        both = not bind and socket.has_dualstack_ipv6()  # the coordinator may have an address of either kind
        family = socket.AF_INET6 if both or ":" in bind else socket.AF_INET
        server = socket.create_server((bind, port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise RendezvousError(f"port {port} cannot be listened at: {error.strerror or error}") from None
    connected: dict[int, socket.socket] = {}
    seen: set[int] = set()
    with contextlib.ExitStack() as opened, server, selectors.DefaultSelector() as selector:
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ)
        while len(connected) < processes - 1:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready and time.monotonic() >= deadline:
                missing = [str(i) for i in range(1, processes) if i not in seen]
                ended = [str(i) for i in range(1, processes) if i not in connected]
                what = f"{', '.join(missing or ended)} of {processes}"
                raise RendezvousError(f"process {what} {'did not connect' if missing else 'connected and ended again'}")
            for key, _ in ready:
                if key.fileobj is server:
                    with contextlib.suppress(OSError):  # it has closed again
                        connection = opened.enter_context(server.accept()[0])
                        selector.register(connection, selectors.EVENT_READ)
                    continue
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                closed = [i for i, other in connected.items() if other is connection]  # it sends no more until it ends
                number = None if closed else _read_greeting(connection, processes)
                if number is not None:
                    if number in connected and _is_open(connected[number]):
                        raise RendezvousError(f"two processes claim to be process {number}")
                    seen.add(number)
                    connected[number] = connection  # a restarted process replaces its former connection
                    continue
                selector.unregister(connection)
                for i in closed:
                    del connected[i]
        for connection in connected.values():
            with contextlib.suppress(OSError):
                connection.sendall(_GO)


def _read_greeting(connection: socket.socket, processes: int) -> int | None:
    """The index in a process's greeting; None where it is no process of diffjax.

    Raises:
      RendezvousError: it was started with another number of processes, or its index is out of range.
    """
    try:
        text = connection.recv(64).decode("ascii", "replace")
    except OSError:
        return None
    words = text.removeprefix(_GREETING).split()
    if not text.startswith(_GREETING) or len(words) != 3 or not (words[0] + words[2]).isdecimal():
        return None
    number, count = int(words[0]), int(words[2])
    if count != processes or not 0 < number < processes:
        raise RendezvousError(f"process {number} was started as one of {count}, process 0 as one of {processes}")
    return number


def _is_open(connection: socket.socket) -> bool:
    """True if the other end is open; it sends nothing after its greeting."""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _connect(address: tuple[str, int], process: int, processes: int, deadline: float) -> None:
    reason = "no process listens there"
    while (seconds := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=seconds) as connection:
                connection.sendall(f"{_GREETING}{process} of {processes}\n".encode())
                connection.settimeout(max(_RETRY, deadline - time.monotonic()))
                if connection.recv(len(_GO)) == _GO:
                    return
                reason = "the listener is no process 0 of this run, or has ended"
        except TimeoutError:
            reason = "not all processes connected"
        except OSError as error:
            reason = "no process listens there" if error.errno == errno.ECONNREFUSED else str(error.strerror or error)
        time.sleep(_RETRY)
    raise RendezvousError(reason)
