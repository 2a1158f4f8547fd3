"""A bar over the steps of a compiled loop, by diffrax's meters: off, it leaves nothing in the program."""

import diffrax


def step_meter(steps: int, progress: bool) -> diffrax.AbstractProgressMeter:
    """A `diffrax.AbstractProgressMeter` for so many steps (a scalar), which reports a hundred times at most."""
    return diffrax.TqdmProgressMeter(max(steps // 100, 1)) if progress else diffrax.NoProgressMeter()
