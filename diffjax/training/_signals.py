"""Stopping at SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal), in one process and in several.

The first signal is stored for the loop, which ends after its next step; a second one ends the process at once, unless
it is SIGHUP: a terminal that closes sends it twice, by the shell and by the kernel, and systemd sends it after SIGTERM.

    several processes    signal or 0 --maximum over all, on the devices--> result, read a step later: all stop

JAX's preemption service synchronises on a step, too, but it looks for SIGTERM once a second (measured, two processes:
detected after 0.2 to 1.1 s, which are 2 steps of 0.5 s or 48 of 0.01 s), hides it from Python, so that a second one
ends nothing, and does not restore it. A number a step costs 2 ms by two processes on two busy cores; nothing waits for
it.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.training._mesh import all_devices

Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | signal.Handlers | None
"""What `signal.getsignal` returns."""


class Stopped(KeyboardInterrupt):
    """Raised by `train` when a signal ended it, after the step was finished and saved.

    Attributes:
      step: how many updates the state that was saved has had.
      signal: SIGINT (Ctrl-C), SIGTERM or SIGHUP.
    """

    def __init__(self, step: int, number: int):
        super().__init__(f"stopped at step {step} by {signal.Signals(number).name}")
        self.step, self.signal = step, number


class StopSignal(Protocol):
    """`stop_signal() -> number or None`: the signal to stop for, None to continue.

    Every process must call it after every step, and all get the same result, of several processes that of the previous
    call. `stop_signal(now=True)` waits for its own.
    """

    def __call__(self, *, now: bool = False) -> int | None: ...


def no_stop_signal(*, now: bool = False) -> int | None:
    """The `StopSignal` of a loop that handles no signals."""
    return None


@contextmanager
def handle_signals() -> Iterator[StopSignal]:
    """Within it, signals wait for the loop; afterwards the handlers are as they were before.

    A signal that arrived after the last call of `stop_signal` is then raised again.

    Yields:
      The function that the loop calls after each step.
    """
    received: list[int] = []
    delivered = False
    maximum = _MaximumOverProcesses() if jax.process_count() > 1 else None

    def stop_signal(*, now: bool = False) -> int | None:
        nonlocal delivered
        number = received[0] if received else 0
        result = number if maximum is None else maximum(number, now=now)
        delivered = bool(number or result)
        return result or None

    if threading.current_thread() is not threading.main_thread():  # where Python handles no signals
        yield stop_signal
        return
    before: dict[int, Handler] = {
        number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)
    }
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:  # nohup sets SIG_IGN
        before[hangup] = signal.getsignal(hangup) or signal.SIG_DFL

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for other, handler in before.items():
            again = other == hangup and handler == signal.SIG_DFL
            signal.signal(other, signal.SIG_IGN if again else _second_handler(handler))

    try:
        for number in before:
            signal.signal(number, handle)
        yield stop_signal
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received and not delivered:
            signal.raise_signal(received[0])


class _MaximumOverProcesses:
    """The largest number that any process passes.

    On CPUs one device of each process takes part (0.5 ms rather than 3, two processes of four devices), and all of them
    elsewhere: a TPU may refuse a program for some.
    """

    def __init__(self):
        devices = np.asarray(all_devices(), object).reshape(jax.process_count(), -1)
        devices = devices[:, :1] if jax.default_backend() == "cpu" else devices
        mesh = jax.sharding.Mesh(devices, ("data", "same"))
        self._split = jax.NamedSharding(mesh, jax.P("data"))
        self._max = jax.jit(jnp.max, out_shardings=jax.NamedSharding(mesh, jax.P()))
        self._previous: jax.Array | None = None

    def __call__(self, number: int, *, now: bool) -> int:
        """The maximum of the previous call, or with `now` of this one, for which it waits."""
        own = np.array([number], np.int32)
        current = self._max(jax.make_array_from_process_local_data(self._split, own))
        result, self._previous = current if now else self._previous, current
        return 0 if result is None else int(result.addressable_data(0))


def _second_handler(handler: Handler) -> Handler:
    """The handler of a second signal: it ends the process, except in an interactive one, or where another is set."""
    return signal.SIG_DFL if handler is signal.default_int_handler and not hasattr(sys, "ps1") else handler
