"""Whether all processes of a run are there, asked before JAX is: it would wait in silence, and then abort.

    process 0       listens at the coordinator's address ------------- all have come: "go" --> closes it --+
    process i > 0   connects, again and again --> says "i of n" --> waits for "go" ------------------------+--> JAX

A line of text each way over TCP, at the port that JAX's own service uses right afterwards.
"""

import contextlib
import errno
import selectors
import socket
import time
from collections.abc import Callable

_GREETING = "diffjax process "
_GO = b"go\n"
_AGAIN = 0.2  # seconds from one try to connect to the next


class Absent(Exception):
    """The others did not come in time, or the address cannot be had; its text says which."""


def call_roll(
    address: tuple[str, int], bind: str, processes: int, process: int, timeout: float, tell: Callable[[str], None]
) -> None:
    """Returns in every process when all are there.

    Args:
      address: host and port of process 0, as the others reach it.
      bind: the address that process 0 listens at; "" for every one of its machine.
      processes: how many there are.
      process: which this one is, from 0.
      timeout: seconds to wait.
      tell: told at once for whom this process waits, and for how long.

    Raises:
      Absent: some did not come, or the port is in use.
    """
    where, deadline = f"{address[0]}:{address[1]}", time.monotonic() + timeout
    if process == 0:
        tell(f"process 0 waits at {where} for {processes - 1} more, up to {timeout:g} s")
        _wait_for_all(bind, address[1], processes, deadline)
    else:
        tell(f"process {process} of {processes} waits for process 0 at {where}, up to {timeout:g} s")
        _answer(address, process, processes, deadline)


def _wait_for_all(bind: str, port: int, processes: int, deadline: float) -> None:
    try:
        both = not bind and socket.has_dualstack_ipv6()  # the coordinator may have an address of either kind
        family = socket.AF_INET6 if both or ":" in bind else socket.AF_INET
        server = socket.create_server((bind, port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise Absent(f"port {port} cannot be listened at: {error.strerror or error}") from None
    here: dict[int, socket.socket] = {}
    seen: set[int] = set()
    with contextlib.ExitStack() as opened, server, selectors.DefaultSelector() as selector:
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ)
        while len(here) < processes - 1:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready and time.monotonic() >= deadline:
                missing = [str(i) for i in range(1, processes) if i not in seen]
                ended = [str(i) for i in range(1, processes) if i not in here]
                what = f"{', '.join(missing or ended)} of {processes}"
                raise Absent(f"process {what} {'did not come' if missing else 'came and ended again'}")
            for key, _ in ready:
                if key.fileobj is server:
                    with contextlib.suppress(OSError):  # it has left again
                        connection = opened.enter_context(server.accept()[0])
                        selector.register(connection, selectors.EVENT_READ)
                    continue
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                left = [i for i, other in here.items() if other is connection]  # it says nothing more until it ends
                number = None if left else _greeted(connection, processes)
                if number is not None:
                    if number in here and _is_open(here[number]):
                        raise Absent(f"two processes say that they are process {number}")
                    seen.add(number)
                    here[number] = connection  # one that comes again, as after a restart, takes its place
                    continue
                selector.unregister(connection)
                for i in left:
                    del here[i]
        for connection in here.values():
            with contextlib.suppress(OSError):
                connection.sendall(_GO)


def _greeted(connection: socket.socket, processes: int) -> int | None:
    """The number that a process says it is; None of what is none of ours.

    Raises:
      Absent: it counts another number of processes, or is beyond them.
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
        raise Absent(f"process {number} was started as one of {count}, process 0 as one of {processes}")
    return number


def _is_open(connection: socket.socket) -> bool:
    """Whether the other end is still there; it says nothing after its greeting."""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _answer(address: tuple[str, int], process: int, processes: int, deadline: float) -> None:
    reason = "nobody listens there"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=left) as connection:
                connection.sendall(f"{_GREETING}{process} of {processes}\n".encode())
                connection.settimeout(max(_AGAIN, deadline - time.monotonic()))
                if connection.recv(len(_GO)) == _GO:
                    return
                reason = "who listens there is no process 0 of ours, or has ended"
        except TimeoutError:
            reason = "not all processes came"
        except OSError as error:
            reason = "nobody listens there" if error.errno == errno.ECONNREFUSED else str(error.strerror or error)
        time.sleep(_AGAIN)
    raise Absent(reason)
