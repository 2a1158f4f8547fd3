"""The averages of parameters that a run keeps: the one samples are drawn with, and those for any width afterwards.

ema_widths ()          state.ema = the average by ema_decay; {"decay": that} where the loss reads it
ema_widths (w, ...)    state.ema = {"decay": that, w: a power function's, ...},   snapshots in RUN/averages
"""

from pathlib import Path
from typing import TypeAlias

from jaxtyping import PyTree

from diffjax._typing import Params
from diffjax.config._names import LOSSES
from diffjax.config._options import Config
from diffjax.training import Snapshots, make_ema, make_power_ema, power_exponent
from diffjax.training._ema import Average

DECAY = "decay"
Averages: TypeAlias = Average | dict[str, Average]


def names(config: Config) -> tuple[str, ...]:
    """What the averages of a run's state are called; none where there is but one."""
    named = config.ema_widths or LOSSES[config.loss.name].averages
    return (DECAY, *map(Snapshots.name, config.ema_widths)) if named else ()


def make_average(config: Config) -> Averages:
    """The average of a configuration, or several by name.

    Raises:
      ValueError: the decay or a width is out of range.
    """
    decay = make_ema(config.ema_decay)
    if not names(config):
        return decay
    for width in config.ema_widths:
        _check("ema-widths", width)
    return {DECAY: decay} | {Snapshots.name(width): make_power_ema(width) for width in config.ema_widths}


def averaged(config: Config, ema: PyTree) -> Params:
    """The parameters that samples are drawn with, of a state's `ema`."""
    return ema[DECAY] if names(config) else ema


def snapshots(config: Config, run: Path) -> Snapshots | None:
    """Where a run's snapshots are, some thirty of each width; None where it takes none."""
    if not config.ema_widths:
        return None
    return Snapshots(run / "averages", config.ema_widths, every=max(1, config.steps // 32))


def find_snapshots(config: Config, run: Path, width: float | None) -> Snapshots | None:
    """The snapshots of a run that an average of a width is made of; None where none is requested.

    Raises:
      ValueError: the run takes none, or the width is out of range.
    """
    if width is None:
        return None
    found = snapshots(config, run)
    if found is None:
        raise ValueError(f"ema-width: {run} was trained without --ema-widths, so that it has one average, got {width}")
    _check("ema-width", width)
    return found


def _check(option: str, width: float) -> None:
    try:
        power_exponent(width)
    except ValueError as error:
        raise ValueError(str(error).replace("width", option, 1)) from None
