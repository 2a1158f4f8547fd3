"""Being asked to stop: SIGINT (Ctrl-C) and SIGTERM, in one process and in several.

    one process        the first signal is kept for the loop, which ends at its next step; a second one ends at once
    several processes  SIGTERM goes to JAX's preemption service, which agrees on one step for all; SIGINT is passed on
                       to it as SIGTERM; from the step agreed on, a second signal ends at once

JAX's service hears SIGTERM from `jax.distributed.initialize` on, about half a second late, and Python must not take
the signal away from it.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax


class Stopped(KeyboardInterrupt):
    """Raised by `train` when a signal ended it, after the step was finished and saved.

    Attributes:
      step: how many updates the state that was saved has had.
      signal: SIGINT (Ctrl-C) or SIGTERM.
    """

    def __init__(self, step: int, number: int):
        super().__init__(f"stopped at step {step} by {signal.Signals(number).name}")
        self.step, self.signal = step, number


Asked = Callable[[Sequence[int]], int | None]


@contextmanager
def hear_signals(reached: Callable[[int], bool]) -> Iterator[Asked]:
    """Within it, signals wait for the loop; afterwards the handlers are as they were before.

    Args:
      reached: whether a step is the one all processes agreed to stop at, as of `Checkpoints.reached_preemption`; asked
        only where there are several.

    Yields:
      `asked(steps) -> signal or None`, to be called once with the numbers of the steps just made: whether to stop now.
      Every process must ask for every step.
    """
    if threading.current_thread() is not threading.main_thread():  # where Python hears no signals
        yield lambda steps: None
        return
    if jax.process_count() > 1:
        with _several(reached) as asked:
            yield asked
        return
    received: list[int] = []
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number, frame):
        received.append(number)
        for other, handler in before.items():
            signal.signal(other, _at_once(handler))

    try:
        for number in before:
            signal.signal(number, handle)
        yield lambda steps: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _several(reached: Callable[[int], bool]) -> Iterator[Asked]:
    before = signal.getsignal(signal.SIGINT) or signal.SIG_DFL

    def handle(number, frame):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    def asked(steps):
        if not any(reached(step) for step in steps):
            return None
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return signal.SIGTERM

    try:
        signal.signal(signal.SIGINT, handle)
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _at_once(handler: Any) -> Any:
    """What a second signal does: end the process, unless somebody is typing in it or has a handler of their own."""
    return signal.SIG_DFL if handler is signal.default_int_handler and not hasattr(sys, "ps1") else handler
