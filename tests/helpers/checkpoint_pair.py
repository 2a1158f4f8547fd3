"""One of two processes that share a folder of checkpoints; started by tests/test_checkpoint_hosts.py.

python tests/helpers/checkpoint_pair.py FOLDER PORT PROCESS
"""

import os
import sys
import warnings
from pathlib import Path

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
import numpy as np


def values(step):
    """What is saved under a number, as NumPy."""
    noise = np.random.default_rng(step).standard_normal((3, 64, 512), np.float32)
    return {"rows": noise[0], "columns": noise[1], "whole": noise[2], "step": np.int32(step).reshape(())}


def main():
    """All checks; a failed one ends the process with its traceback."""
    folder, port, process = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    import shutil

    from jax.experimental import multihost_utils
    from jax.sharding import AxisType

    from diffjax.training import Checkpoints, Refused, initialize

    initialize(f"127.0.0.1:{port}", 2, process, heartbeat=20, timeout=120, abort_on_error=True)
    assert jax.process_count() == 2
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(AxisType.Auto,))
    specs = {"rows": jax.P("fsdp"), "columns": jax.P(None, "fsdp"), "whole": jax.P(), "step": jax.P()}
    shardings = {name: jax.NamedSharding(mesh, spec) for name, spec in specs.items()}

    def place(tree):
        return {
            name: jax.make_array_from_callback(x.shape, shardings[name], lambda i, x=x: x[i])
            for name, x in tree.items()
        }

    def check(state, step):
        assert state.keys() == specs.keys()
        for name, truth in values(step).items():
            for shard in state[name].addressable_shards:
                np.testing.assert_array_equal(np.asarray(shard.data), truth[shard.index])

    like = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name]) for name, x in values(0).items()}
    with Checkpoints(folder, keep=4, about={"config": "abc"}) as checkpoints:
        assert checkpoints.steps() == [10]  # of one process with eight devices
        check(checkpoints.restore(like), 10)
        try:  # one of them holds the folder for both, and both raise
            Checkpoints(folder)
            message = ""
        except Refused as error:
            message = str(error)
        assert f"{folder} is in use: process " in message
        assert message.endswith("(process 0)")
        checkpoints.check_space(like)
        for step in (11, 12, 13):
            checkpoints.save(step, place(values(step)))
        checkpoints.verify()
        check(checkpoints.restore(like), 13)
        everywhere = {
            name: jax.NamedSharding(mesh, jax.P(None, "fsdp") if x.ndim else jax.P()) for name, x in like.items()
        }
        other = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere[name]) for name, x in like.items()}
        check(checkpoints.restore(other, 12), 12)
        multihost_utils.sync_global_devices("read")

        if process == 0:  # one bit of the newest, in what process 1 wrote; and the one before cannot be read at all
            files = (folder / "13" / "state" / "ocdbt.process_1" / "d").iterdir()
            largest = max(files, key=lambda path: path.stat().st_size)
            data = bytearray(largest.read_bytes())
            data[len(data) // 2] ^= 1
            largest.write_bytes(data)
            (folder / "12" / "state" / "manifest.ocdbt").unlink()
        multihost_utils.sync_global_devices("damaged")
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            check(checkpoints.restore(like), 11)
        message = [str(warning.message) for warning in warned if "damaged" in str(warning.message)]
        assert len(message) == (1 if process == 0 else 0), message
        assert checkpoints.steps() == [10, 11]
        checkpoints.save(12, place(values(12)))
        check(checkpoints.restore(like), 12)

        if process == 0:  # what one process finds, all raise
            full = shutil.disk_usage(folder)._replace(free=0)
            shutil.disk_usage = lambda _: full
        message = None
        try:
            checkpoints.check_space(like)
        except RuntimeError as error:
            message = str(error)
        assert message is not None
        assert "no space for checkpoints" in message
    print(f"process {process} done", flush=True)


if __name__ == "__main__":
    main()
