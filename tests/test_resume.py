"""A run cut in two by a new process ends bitwise where an uncut one does; on other devices, at the same loss.

python tests/test_resume.py FOLDER first | second      what the processes of the test do
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNS = ("jit 1", "jit 8", "fsdp 1", "fsdp 8", "pmap 1", "pmap 8", "jit 8 accumulated", "fsdp 8 four a call")
STEPS, SIZE = 8, 16


def go(folder, name, steps, devices=None):
    """(digest of the state, last loss) of a run in a folder, trained up to a step from where it is."""
    import jax
    import training_toy as toy

    from diffjax.training import (
        Checkpoints,
        data_mesh,
        fsdp_layout,
        jit_layout,
        make_ema,
        make_mesh,
        make_train_step,
        pmap_layout,
        train,
    )

    kind, count, *more = name.split(" ", 2)
    found = jax.devices()[: int(count) if devices is None else devices]
    options = {"axis_name": "data"} if kind == "pmap" else {}
    options |= {"accumulate": 2} if more == ["accumulated"] else {}
    step = make_train_step(toy.make_objective(), ema=make_ema(0.99), **options)
    each = {"steps": 4} if more == ["four a call"] else {}
    if kind == "pmap":
        layout = pmap_layout(step, found, **each)
    elif kind == "fsdp":
        layout = fsdp_layout(step, make_mesh(fsdp=len(found), devices=found), min_size=16, **each)
    else:
        layout = jit_layout(step, data_mesh(found), **each)
    shapes, log = jax.eval_shape(toy.fresh_state), Path(folder) / "log.jsonl"
    with Checkpoints(Path(folder) / "checkpoints") as checkpoints:
        new = checkpoints.latest() is None
        state = layout.init(toy.fresh_state) if new else layout.move_state(checkpoints.restore(layout.abstract(shapes)))
        options = {"steps": steps, "batch_size": SIZE, "seed": 0, "placed": True, "progress": False}
        state = train(state, layout, toy.source, checkpoints=checkpoints, log=log, log_every=1, **options)
    losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    return toy.digest(state), losses


def first(folder):
    """Whole runs, and halves."""
    return {name: [go(f"{folder}/{name}/{of}", name, of)[:2] for of in (STEPS, STEPS // 2)] for name in RUNS}


def second(folder):
    """The other halves; and from the half on eight devices, on four."""
    import shutil

    for name in ("jit 8", "fsdp 8"):
        shutil.copytree(f"{folder}/{name}/{STEPS // 2}", f"{folder}/{name}/four")
    shutil.copytree(f"{folder}/fsdp 8/{STEPS // 2}", f"{folder}/fsdp 8/jit")
    ends = {name: go(f"{folder}/{name}/{STEPS // 2}", name, STEPS) for name in RUNS}
    ends["jit on 4"] = go(f"{folder}/jit 8/four", "jit 8", STEPS, devices=4)
    ends["fsdp on 4"] = go(f"{folder}/fsdp 8/four", "fsdp 8", STEPS, devices=4)
    ends["fsdp by jit on 4"] = go(f"{folder}/fsdp 8/jit", "jit 4", STEPS)
    return ends


@pytest.mark.slow
def test_a_new_process_goes_on_bit_for_bit_and_four_devices_to_the_same_loss(tmp_path):
    def process(part):
        command = [sys.executable, __file__, str(tmp_path), part]
        here = Path(__file__).parent
        environment = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here / 'helpers'}"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    before, after = process("first"), process("second")
    for name in RUNS:
        (whole, losses), (half, _) = before[name]
        assert after[name] == [whole, losses], name
        assert half != whole
    _, losses = before["jit 8"][0]
    for name in ("jit on 4", "fsdp on 4", "fsdp by jit on 4"):
        assert after[name][1] == pytest.approx(losses, rel=1e-5)
    assert len(set(losses)) == STEPS


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    print(json.dumps({"first": first, "second": second}[sys.argv[2]](sys.argv[1])))
