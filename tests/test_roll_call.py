"""Processes that wait for each other log it, and end in one line where one does not connect."""

import socket
import threading
import time

import pytest

from diffjax.cli import main
from diffjax.training._rendezvous import RendezvousError, wait_for_processes


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def started(port, processes, process, timeout, logged=None):
    """The error of one process, None where all connected; in a thread of its own, started."""
    found = []

    def call():
        try:
            log = (lambda text: None) if logged is None else logged.append
            found.append(wait_for_processes(("127.0.0.1", port), "127.0.0.1", processes, process, timeout, log))
        except RendezvousError as error:
            found.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    return lambda: (thread.join(), found[0])[1]


def connected(port):
    """A connection to process 0, once it listens."""
    for _ in range(600):
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise AssertionError("nobody listens")


def test_all_who_come_are_let_go_together(port):
    """One comes before process 0 does, one comes twice, somebody else connects in between, and the last comes late."""
    logged = []
    early = started(port, 4, 2, 60, logged)
    time.sleep(0.1)
    zero = started(port, 4, 0, 60, logged)
    with connected(port) as before, connected(port) as stranger:
        before.sendall(b"diffjax process 1 of 4\n")
        before.close()  # it has ended, and is started again
        stranger.sendall(b"GET / HTTP/1.1\r\n")
        again = started(port, 4, 1, 60)
        time.sleep(0.5)
        assert [call() for call in (zero, early, again, started(port, 4, 3, 60))] == [None, None, None, None]
    assert sorted(logged) == [
        f"process 0 waits at 127.0.0.1:{port} for 3 more, up to 60 s",
        f"process 2 of 4 waits for process 0 at 127.0.0.1:{port}, up to 60 s",
    ]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_process_0_listens_at_addresses_of_both_kinds(port, host):
    zero = threading.Thread(target=wait_for_processes, args=((host, port), "", 2, 0, 10, lambda text: None))
    zero.start()
    wait_for_processes((host, port), "", 2, 1, 10, lambda text: None)
    zero.join()


def test_who_does_not_come_is_named(port):
    zero, two = started(port, 4, 0, 3), started(port, 4, 2, 1)  # a process that connected and closed again is not named
    assert two() == "not all processes connected"
    assert zero() == "process 1, 3 of 4 did not connect"


def test_who_came_and_left_again_is_named(port):
    zero = started(port, 3, 0, 2)
    time.sleep(0.3)
    for number in (1, 2):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(f"diffjax process {number} of 3\n".encode())
        if number == 1:
            time.sleep(0.2)
            connection.close()
            time.sleep(0.2)
    # Process 2 is there, but process 1 was killed while it waited.
    assert zero() == "process 1 of 3 connected and ended again"
    connection.close()


@pytest.mark.parametrize(
    ("process", "reason"), [(1, "no process listens there"), (0, "process 1 of 2 did not connect")]
)
def test_a_command_that_waits_in_vain_ends_in_one_line(port, process, reason, capfd):
    argv = [
        "train",
        "toy2d",
        "--coordinator",
        f"127.0.0.1:{port}",
        "--num-processes",
        "2",
        "--process-id",
        str(process),
    ]
    start = time.monotonic()
    assert main([*argv, "--join-timeout", "1"]) == 75
    assert time.monotonic() - start < 60  # by default it waits five minutes
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("diffjax: process")
    assert "up to 1 s" in first
    assert second.startswith(
        f"diffjax: coordinator: 127.0.0.1:{port}: no run of 2 within 1 s: {reason}; start them all"
    )


def test_a_port_in_use_is_named_at_once(capfd):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        argv = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id", "0"]
        start = time.monotonic()
        assert main(["train", "toy2d", *argv]) == 75
    assert time.monotonic() - start < 60
    assert f"port {port} cannot be listened at: Address already in use" in capfd.readouterr().err


def test_processes_that_count_differently_or_twice_are_named_at_once(port):
    zero, one = started(port, 3, 0, 20), started(port, 2, 1, 1)
    assert zero() == "process 1 was started as one of 2, process 0 as one of 3"
    one()
    zero, one, again = started(port, 3, 0, 20), started(port, 3, 1, 1), started(port, 3, 1, 1)
    assert zero() == "two processes claim to be process 1"
    one(), again()
