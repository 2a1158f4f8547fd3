"""What a checkpoint of 256 MiB costs: until save() returns, until it is on disk, its digests, restoring, verifying.

    python scripts/chaos/save_cost.py --saves 9

The state is donated to a step right after save() returns, as training does.

Found on two idle cores, 64 leaves: save() returned after 0.025 s at best, 0.039 s in the middle; on the disk after
1.3 s; digests 0.5 to 0.7 s of processor time a GiB, in a thread of their own; restored and checked in 0.73 s, verified
on the host in 0.82 s. (Under a load of 14: 0.07 to 0.11 s in the middle.) Not yet measured: a GPU.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from diffjax.training import Checkpoints
from diffjax.training.checkpoint import _orbax


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=9)
    parser.add_argument("--leaves", type=int, default=64)
    options = parser.parse_args(argv)
    digest, spent = _orbax.digest_parts, []

    def timed(*args):
        begun = time.thread_time()
        try:
            return digest(*args)
        finally:
            spent[-1] += time.thread_time() - begun

    _orbax.digest_parts = timed
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 1.0001, tree), donate_argnums=0)
    make = lambda key: jax.random.normal(key, (2**26 // options.leaves // 512, 512))
    state = [make(key) for key in jax.random.split(jax.random.key(0), options.leaves)]
    jax.block_until_ready(state)
    returned, worked, written = [], [], []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep=1) as checkpoints:
        for number in range(options.saves):
            spent.append(0.0)
            begun, begun_work = time.perf_counter(), time.thread_time()
            checkpoints.save(number, state)
            worked.append(time.thread_time() - begun_work)
            returned.append(time.perf_counter() - begun)
            state = jax.block_until_ready(step(state))
            checkpoints.wait()
            written.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        jax.block_until_ready(checkpoints.restore(state))
        restored = time.perf_counter() - begun
        begun = time.perf_counter()
        checkpoints.verify()
        verified = time.perf_counter() - begun
    show = lambda seconds: f"least {min(seconds):.3f}, median {statistics.median(seconds):.3f}"
    load, cores = os.getloadavg()[0], os.cpu_count()
    print(f"256 MiB in {options.leaves} leaves, {options.saves} saves, load {load:.1f} on {cores} cores")
    print(f"save() returned after        {show(returned[1:])} s; its processor time {show(worked[1:])} s")
    print(f"on disk after                {show(written[1:])} s")
    print(f"digests, processor time      {show([4 * s for s in spent[1:]])} s a GiB, in a thread of their own")
    print(f"restored and checked after   {restored:.2f} s; verified on the host after {verified:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
