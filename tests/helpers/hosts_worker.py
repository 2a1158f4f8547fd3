"""One of several processes of a run, for `test_hosts.py`: does what must be done together, and writes down what it saw.

    python scripts/launch.py --processes 2 --program tests/helpers/hosts_worker.py FOLDER short|long|again|texts|ends

short: shared errors, shares of the data, two steps. long: trains in three layouts, saves, and draws samples.
again: new processes go on from the middle. texts: runs on captions, resumed. ends: each way in which training ends
early; the last one ends the process.
Process i writes FOLDER/PART_i.json, and process 0 arrays beside it.
"""

import argparse
import errno
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import training_toy as toy

LAYOUTS = ("jit", "pmap", "fsdp")
BATCH, STEPS, HALF, SEED = 16, 6, 3, 3


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", choices=["short", "long", "again", "texts", "ends"])
    parser.add_argument("--coordinator")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    args = parser.parse_args()
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    from diffjax.training import initialize, is_main

    initialize(args.coordinator, args.num_processes, args.process_id, heartbeat=10, abort_on_error=True)
    seen, arrays = globals()[args.part](args.folder)
    (args.folder / f"{args.part}_{args.process_id}.json").write_text(json.dumps(seen))
    if is_main():
        np.savez(args.folder / f"{args.part}.npz", **arrays)


def short(folder):
    import jax

    from diffjax import data
    from diffjax.training import Objective, gather_to_host, jit_layout, make_train_step

    index, count = jax.process_index(), jax.process_count()
    items = data.from_arrays(np.arange(40, dtype=np.float32)[:, None] / 40)
    shares = [items(SEED, step, 8, part=(index, count))[0].ravel().tolist() for step in range(5)]
    state, losses, tx = *probe_state(), probe_tx()
    layout = jit_layout(make_train_step(Objective(probe_loss, tx), ema=lambda step, params, ema: ema))
    state = layout.put_state(state)
    for n in range(2):
        state, metrics = layout.step(state, layout.put_batch(source(SEED, n, BATCH, part=(index, count))[0]))
        losses.append(float(metrics["loss"]))
    seen = {"devices": [jax.device_count(), jax.local_device_count()], "main": index == 0, "shares": shares}
    return seen | synced_errors(index) | {"losses": losses}, gather_to_host(state.params)


def probe_loss(params, batch, context):
    """mean_i |w - x_i|^2/2 + <n[index_i], eps_i>: steps of gradient descent leave the mean of x in w, each eps in n."""
    import jax.numpy as jnp

    from diffjax.process import normal_like, sample_keys

    eps = normal_like(sample_keys(context.key, context.index), batch)
    each = 0.5 * (params["w"] - batch) ** 2 + params["n"][context.index] * eps
    return jnp.sum(each) / len(batch), {}


def probe_state():
    """The state before the first step, and no losses."""
    import jax
    import jax.numpy as jnp

    from diffjax.training import state_from_params

    params = {"w": jnp.zeros(8), "n": jnp.zeros((BATCH, 8))}
    return state_from_params(jax.random.key(SEED), params, probe_tx()), []


def probe_tx():
    import optax

    return optax.sgd(0.5)


def synced_errors(index):
    """The error that each process raises where one of them differs from the others, or fails."""
    from diffjax.training import check_same, run_on_main, sync_errors

    def fail(error):
        if index == 1:
            raise error
        return index

    errors = {}
    check_same({"seed": 3, "network.width": 16})
    for name, action in {
        "seed": lambda: check_same({"steps": 5, "seed": 3 + index, "network.width": 16 * (index + 1)}),
        "missing": lambda: sync_errors(lambda: fail(FileNotFoundError("data.path: x.npz: no such file"))),
        "broken": lambda: sync_errors(lambda: fail(OSError("a disk"))),
        "main": lambda: run_on_main(lambda: fail(OSError("not run"))),
    }.items():
        try:
            action()
            errors[name] = None
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
    return {"errors": errors, "synced": sync_errors(lambda: index)}


def long(folder):
    from diffjax.training import Checkpoints, data_mesh, gather_to_host

    arrays = {"x0": gather_to_host(draw(data_mesh()))}
    for name in LAYOUTS:
        layout = make_layout(name)
        with Checkpoints(folder / name) as checkpoints:
            state = layout.init(toy.fresh_state)
            state = go(layout, state, checkpoints, save_every=HALF, log=folder / name / "log.jsonl", log_every=1)
        arrays |= leaves(name, state)
    return {}, arrays


def texts(folder):
    """Runs on texts: embeddings, and ids of an encoder that is trained with the network; the second half resumed."""
    from diffjax.training import Checkpoints, jit_layout, make_ema, make_train_step, train

    arrays = {}
    for joint in (False, True):
        run = text_run(joint)
        layout = jit_layout(make_train_step(run.parts.training_objective(), ema=make_ema(0.5)))
        options = {"batch_size": BATCH, "seed": SEED, "placed": True, "progress": False}
        read, init = text_source(joint), lambda run=run: fresh(run)
        with Checkpoints(folder / f"texts_{joint}") as checkpoints:
            train(layout.init(init), layout, read, steps=2, checkpoints=checkpoints, **options)
            state = layout.move_state(checkpoints.restore(layout.abstract(layout.init(init))))
            state = train(state, layout, read, steps=4, **options)
        arrays |= leaves(f"texts_{joint}", state)
    return {}, arrays


def fresh(run):
    """A state of a run before its first step."""
    from diffjax.config._run import fresh_state

    return fresh_state(run)


def text_run(joint):
    """A run conditioned on texts of five tokens, whose encoder is trained with it or frozen."""
    from diffjax import config as c
    from diffjax.networks import T5Encoder

    sizes = {"vocabulary": 20, "width": 8, "depth": 1, "heads": 2, "head_channels": 4, "hidden": 8}
    encoder = T5Encoder(**sizes, whitened=True) if joint else None
    samples = c.Samples((4,), None, text=(5, 8), encoder="a", trained_encoder=encoder)
    network, optimiser = c.NetworkConfig("mlp", width=8, depth=1), c.OptimiserConfig(0.02, warmup=0)
    config = c.Config(network=network, optimiser=optimiser, guidance=c.GuidanceConfig(dropout=0.3), steps=8)
    return c.build_run(config, samples)


def text_source(joint):
    """Points [size, 4] and texts of zero to five tokens, a function of seed and step."""
    from diffjax.data import whole
    from diffjax.networks import Text

    def source(seed, step, size):
        rng = np.random.default_rng((seed, step))
        mask = np.arange(5) < rng.integers(0, 6, size)[:, None]
        ids = rng.integers(3, 20, (size, 5)).astype(np.int32)
        embedding = ids if joint else rng.normal(size=(size, 5, 8)).astype(np.float32)
        return rng.normal(size=(size, 4)).astype(np.float32), Text(embedding, mask)

    return whole(source)


def again(folder):
    """Rolls each run back to its middle, and goes on: the arrays are to be those of `long`."""
    from diffjax.training import Checkpoints

    arrays = {}
    for name in LAYOUTS:
        layout = make_layout(name)
        with Checkpoints(folder / name) as checkpoints:
            checkpoints.rollback(HALF)
            state = layout.move_state(checkpoints.restore(layout.abstract(layout.init(toy.fresh_state))))
            state = go(layout, state, checkpoints)
        arrays |= leaves(name, state)
    return {}, arrays


def go(layout, state, checkpoints, *, read=None, steps=STEPS, **more):
    """Trains on, from a placed state."""
    from diffjax.training import train

    batches = {"batch_size": BATCH, "seed": SEED, "placed": True, "progress": False, "handle_signals": True}
    return train(state, layout, read or source, steps=steps, checkpoints=checkpoints, **batches, **more)


def ends(folder):
    """Rows that are not finite in both processes; two signals in process 1; and a disk of process 1 that is full."""
    import jax

    from diffjax.training import Checkpoints, NotFinite, Stopped
    from diffjax.training.checkpoint import _orbax, quiet_orbax_logs

    second, layout, received = jax.process_index() == 1, make_layout("jit"), []

    def spoilt(seed, step, size, part):
        x, cond = toy.source(seed, step, size)
        if step in (2, 3):
            x[[3, 12], 1] = np.nan
        i, n = part
        return x[i * size // n :][: size // n], cond[i * size // n :][: size // n]

    def interrupted(seed, step, size, part):
        if step == 3 and second:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)  # the second one goes to the former handler
        return source(seed, step, size, part)

    async def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    quiet_orbax_logs()
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with Checkpoints(folder / "ends") as checkpoints:
        try:
            go(layout, layout.init(toy.fresh_state), None, read=spoilt, skip_limit=2, log_every=1)
        except NotFinite as error:
            seen = {"not finite": str(error)}
        try:
            go(layout, layout.init(toy.fresh_state), checkpoints, read=interrupted, steps=30)
        except Stopped as stop:
            seen |= {"stopped": stop.step, "signal": stop.signal, "saved": checkpoints.steps(), "received": received}
        seen["restored"] = all(signal.getsignal(number) is handler for number, handler in before.items())
        (folder / f"ends_{jax.process_index()}.json").write_text(json.dumps(seen))
        if second:
            _orbax._write = full
        state = layout.move_state(checkpoints.restore(layout.abstract(layout.init(toy.fresh_state))))
        go(layout, state, checkpoints, steps=seen["stopped"] + 9, save_every=HALF)


def source(seed, step, size, part=(0, 1)):
    """The toy's rows of one part."""
    from diffjax.data import whole

    return whole(toy.source)(seed, step, size, part=part)


def make_layout(name):
    """The toy's step over all devices of all processes."""
    from diffjax import training

    make_step = lambda **more: training.make_train_step(toy.make_objective(), ema=training.make_ema(0.99), **more)
    if name == "pmap":
        return training.pmap_layout(make_step(axis_name="data"))
    return (training.fsdp_layout if name == "fsdp" else training.jit_layout)(make_step())


def draw(mesh):
    """Samples [10, 3] of a shrinking denoiser, by a stochastic method."""
    import jax

    from diffjax import DDIM, VariancePreserving, sample_n

    ts, method = np.linspace(1, 0.01, 4), DDIM(eta=1.0)
    key, process = jax.random.key(5), VariancePreserving()
    return sample_n(key, process, shrink, (3,), 10, ts=ts, stepper=method, chunk=8, mesh=mesh)


def shrink(xt, t):
    return 0.5 * xt


def leaves(name, state):
    """name/path -> array, whole, keys as their data."""
    import jax

    from diffjax.training import gather_to_host

    state = state._replace(key=jax.jit(jax.random.key_data)(state.key))
    paths = jax.tree_util.tree_leaves_with_path(gather_to_host(state))
    return {f"{name}{jax.tree_util.keystr(path)}": leaf for path, leaf in paths}


if __name__ == "__main__":
    sys.exit(main())
