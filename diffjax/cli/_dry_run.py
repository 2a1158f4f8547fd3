"""`diffjax train --dry-run`: what a run would take, from its shapes and its compiled step; nothing is written.

parameters | state a device, in each layout, from the shardings | memory and FLOPs of a step, from XLA
"""

import math
from typing import Any

import jax
from jaxtyping import PyTree

from diffjax._arrays import in_bytes
from diffjax.cli._devices import name_devices
from diffjax.cli._hosts import log
from diffjax.cli._layout import LAYOUTS, make_layout
from diffjax.cli._options import Train
from diffjax.config import Data
from diffjax.config._averages import Averages
from diffjax.training import Family, Layout, TrainState


def dry_run(options: Train, data: Data, family: Family, ema: Averages, shapes: TrainState) -> None:
    """Prints it, in process 0; all of a run compile.

    Args:
      options: of the run.
      data: for one batch.
      family: of the run.
      ema: of the run.
      shapes: of a fresh state, from `jax.eval_shape`.
    """
    config, layout = options.config, make_layout(options, family, ema)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    sizes = ", ".join(f"{axis} {size}" for axis, size in layout.about.items() if axis != "layout")
    log(f"{config.name}: {count:,} parameters; batch {config.batch_size}; {name_devices(_devices(layout))}")
    log(f"\n{'layout':10}state on a device (parameters, averages, optimiser)")
    for name in LAYOUTS:
        try:
            other = layout if name == layout.about["layout"] else make_layout(options, family, ema, name)
            said = in_bytes(state_bytes(other, shapes))
        except ValueError as error:
            said = f"- ({error})"
        log(f"{name:10}{said}")
    log(f"\ncompiling the step under {layout.about['layout']} ({sizes}) ...")
    part = (jax.process_index(), jax.process_count())
    flops, memory = measure_step(layout, shapes, data.source(config.seed, 0, config.batch_size, part=part))
    # What is inside the loop of accumulation is counted once.
    flops *= options.accumulate
    # Other loops too: the gradients of kernels on a CPU, blocks under scan.
    log(f"FLOPs of a step     at least {flops:.3g} on a device, {flops * _devices(layout):.3g} in all")
    log("memory of a step    " + ", ".join(f"{in_bytes(size)} {what}" for what, size in memory.items()))


def state_bytes(layout: Layout, shapes: TrainState) -> int:
    """How many bytes of a state one device holds, by the shardings of the layout."""
    leaves = jax.tree.leaves(layout.abstract(shapes))
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def measure_step(layout: Layout, shapes: TrainState, batch: PyTree) -> tuple[float, dict[str, int]]:
    """FLOPs of the compiled step on one device, and its bytes by use."""
    state = layout.abstract(shapes)
    if layout.about["layout"] == "pmap":
        copies = layout.devices // jax.process_count()
        add = lambda leaf: jax.ShapeDtypeStruct((copies, *leaf.shape), leaf.dtype)
        state = jax.tree.map(add, state)
    compiled: Any = layout.step.lower(state, layout.put_batch(batch)).compile()  # pyright: ignore
    found = compiled.memory_analysis()
    memory = {
        "of arguments": found.argument_size_in_bytes,
        "given back in their place": found.alias_size_in_bytes,
        "for a time": found.temp_size_in_bytes,
    }
    return compiled.cost_analysis()["flops"], memory


def _devices(layout: Layout) -> int:
    return math.prod(int(size) for axis, size in layout.about.items() if axis != "layout")
