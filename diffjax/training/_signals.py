"""Being asked to stop: SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal), in one process and in several.

The first signal is kept for the loop, which ends after its next step; a second one ends the process at once, unless it
is SIGHUP: a terminal that closes sends it twice, by the shell and by the kernel, and systemd sends it after SIGTERM.

    several processes    signal or 0 --largest of all, on the devices--> answer, read a step later: all stop together

JAX's preemption service agrees on a step, too, but it looks for SIGTERM once a second (measured, two processes: heard
after 0.2 to 1.1 s, which are 2 steps of 0.5 s or 48 of 0.01 s), hides it from Python, so that a second one ends
nothing, and does not give it back. A number a step costs 2 ms by two processes on two busy cores; nothing waits for it.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.training._mesh import all_devices


class Stopped(KeyboardInterrupt):
    """Raised by `train` when a signal ended it, after the step was finished and saved.

    Attributes:
      step: how many updates the state that was saved has had.
      signal: SIGINT (Ctrl-C), SIGTERM or SIGHUP.
    """

    def __init__(self, step: int, number: int):
        super().__init__(f"stopped at step {step} by {signal.Signals(number).name}")
        self.step, self.signal = step, number


Asked = Callable[..., int | None]


@contextmanager
def hear_signals() -> Iterator[Asked]:
    """Within it, signals wait for the loop; afterwards the handlers are as they were before.

    One of which nobody was told, as it came after the last question, is then raised anew.

    Yields:
      `asked() -> signal or None`: whether to stop now. Every process must ask after every step, and all get the same
      answer, of several processes that to the question before. `asked(now=True)` waits for its own.
    """
    received: list[int] = []
    told = False
    largest = _Largest() if jax.process_count() > 1 else None

    def asked(*, now: bool = False) -> int | None:
        nonlocal told
        number = received[0] if received else 0
        answer = number if largest is None else largest(number, now=now)
        told = bool(number or answer)
        return answer or None

    if threading.current_thread() is not threading.main_thread():  # where Python hears no signals
        yield asked
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:  # which nohup asks for
        before[hangup] = signal.getsignal(hangup) or signal.SIG_DFL

    def handle(number, frame):
        received.append(number)
        for other, handler in before.items():
            again = other == hangup and handler == signal.SIG_DFL
            signal.signal(other, signal.SIG_IGN if again else _at_once(handler))

    try:
        for number in before:
            signal.signal(number, handle)
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received and not told:
            signal.raise_signal(received[0])


class _Largest:
    """The largest number that any process says.

    One device of each takes part on CPUs (0.5 ms rather than 3, two processes of four devices), and all of them
    elsewhere: a TPU may refuse a program for some.
    """

    def __init__(self):
        devices = np.asarray(all_devices(), object).reshape(jax.process_count(), -1)
        devices = devices[:, :1] if jax.default_backend() == "cpu" else devices
        mesh = jax.sharding.Mesh(devices, ("data", "same"))
        self._spread = jax.NamedSharding(mesh, jax.P("data"))
        self._find = jax.jit(jnp.max, out_shardings=jax.NamedSharding(mesh, jax.P()))
        self._before: jax.Array | None = None

    def __call__(self, number: int, *, now: bool) -> int:
        """The answer to the question before, or with `now` to this one, for which it waits."""
        own = np.array([number], np.int32)
        asked = self._find(jax.make_array_from_process_local_data(self._spread, own))
        answer, self._before = asked if now else self._before, asked
        return 0 if answer is None else int(answer.addressable_data(0))


def _at_once(handler: Any) -> Any:
    """What a second signal does: end the process, unless somebody is typing in it or has a handler of their own."""
    return signal.SIG_DFL if handler is signal.default_int_handler and not hasattr(sys, "ps1") else handler
