"""Two processes and one folder of checkpoints: written together, read together, and all agree on what is damaged."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoint_pair import values
from ports import free_port

from diffjax.training import Checkpoints


def test_who_could_not_write_does_not_wait_for_the_others():
    from diffjax.training.checkpoint._orbax import SaveBarrier

    barrier = SaveBarrier()
    barrier._written = False  # as of several processes while they write
    enter = lambda key: ThreadPoolExecutor(1).submit(barrier, key=key, timeout_ms=1).result()
    barrier(key="set_value_start", timeout_ms=1)  # where the save begins
    enter("async_write_complete")
    with pytest.raises(RuntimeError, match="a save failed"):
        enter("set_value_start")
    enter("async_commit_complete")
    enter("set_value_start")


@pytest.mark.slow
def test_two_processes_write_read_and_fall_back_together(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    place = lambda x: jax.device_put(x, jax.NamedSharding(mesh, jax.P("data") if x.ndim else jax.P()))
    with Checkpoints(tmp_path / "saved") as checkpoints:
        checkpoints.save(10, jax.tree.map(place, values(10)))
    script, port = Path(__file__).parent / "helpers" / "checkpoint_pair.py", free_port()
    command = [sys.executable, str(script), str(tmp_path / "saved"), str(port)]
    environment = {**os.environ, "PYTHONPATH": str(script.parents[2])}
    pair = [
        subprocess.Popen(
            [*command, str(i)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for i in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in pair]
    finally:
        for process in pair:
            process.kill()
    for i, output in enumerate(outputs):
        assert f"process {i} done" in output, output
        assert pair[i].returncode == 0
    with Checkpoints(tmp_path / "saved", read_only=True) as checkpoints:
        assert checkpoints.steps() == [10, 11, 12]
        for step in checkpoints.steps():
            checkpoints.verify(step)
            back = checkpoints.restore(jax.tree.map(place, values(10)), step)
            for name, truth in values(step).items():
                np.testing.assert_array_equal(back[name], truth)
        assert checkpoints.about(12)["processes"] == 2
    assert len(list((tmp_path / "saved" / "12" / "digests").glob("process_*.json"))) == 2
    assert sorted(path.name for path in (tmp_path / "saved" / "aside").iterdir()) == ["12", "13"]
