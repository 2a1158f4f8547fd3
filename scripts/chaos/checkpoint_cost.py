"""What do checkpoints cost a run? The time the loop stands still for one, and all the work of one, against an interval.

    python scripts/chaos/checkpoint_cost.py [--presets toy2d digits] [--steps 100] [--saves 10]

For each preset: `step`, the time of a step; `standing`, what the loop waits for at a save (the state is checked and
copied); `work`, the processor time of a save until it is on the disk, by all threads, which on a CPU the steps
meanwhile do not get. The last columns are their shares of a run that saves each minute, and the least seconds between
saves for which both cost at most one percent of the time.

Found on two cores shared with other programs (load 13: all is longer than on idle ones, and the shares are rough),
from the least to the most of three runs, two for digits; the shares are of a run that saves each 500 steps:

                        step         standing         work            standing        work
    toy2d     3.5 MiB    24 to  90 ms    85 to 231 ms   0.28 to 0.45 s   0.3 to 0.7%     0.8 to 2.8%
    digits   11.7 MiB   478 to 637 ms   572 to 730 ms   1.6  to 2.1  s   0.2%            0.5 to 0.9%

The work is Orbax's, some 3 ms an array whatever its size: so an interval in seconds is the one to choose, 180 or more
where the processor trains.
"""

import argparse
import statistics
import tempfile
import time

import jax

from diffjax import config, training


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["toy2d", "digits"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--saves", type=int, default=10)
    options = parser.parse_args(argv)
    print("preset     state MiB  step ms  standing ms  work ms   standing of 60 s  work of 60 s   seconds for 1%")
    for name in options.presets:
        size, step, standing, work = measure(config.PRESETS[name], options.steps, options.saves)
        shares = f"{standing / 60:16.2%}  {work / 60:12.2%}  {max(standing, work) * 100:14.1f}"
        print(f"{name:10} {size:9.2f} {step * 1e3:8.2f} {standing * 1e3:12.1f} {work * 1e3:8.1f}  {shares}", flush=True)


def measure(chosen, steps, saves):
    """MiB of a state; seconds of a step, and those the loop waits and that processors work for a save; medians."""
    data = config.build_data(chosen.data)
    built = config.build_run(chosen, data.samples)
    step = training.make_train_step(built.family.objectives, ema=training.make_ema(chosen.ema_decay))
    layout = training.jit_layout(step, training.data_mesh(jax.devices()[:1]))
    state = layout.put_state(config.fresh_state(built))
    batch = layout.put_batch(data.source(0, 0, chosen.batch_size))

    def run(state, n):
        """The state after n steps, and the seconds of a step."""
        begun = time.perf_counter()
        for _ in range(n):
            state, metrics = layout.step(state, batch)
            jax.block_until_ready(metrics)
        return state, (time.perf_counter() - begun) / n

    state, _ = run(state, 3)
    state, wall = run(state, steps)
    standing, work = [], []
    with tempfile.TemporaryDirectory() as folder, training.Checkpoints(folder) as checkpoints:
        for number in range(saves + 1):
            state, _ = run(state, 3)
            begun, begun_cpu = time.perf_counter(), time.process_time()
            training.check_parameters(number, layout.get_state(state))
            checkpoints.save(number, layout.get_state(state), {"loss": 0.0})
            stood = time.perf_counter() - begun
            checkpoints.wait()
            if number:  # the first compiles
                standing.append(stood)
                work.append(time.process_time() - begun_cpu)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / 2**20
    return size, wall, statistics.median(standing), statistics.median(work)


if __name__ == "__main__":
    main()
