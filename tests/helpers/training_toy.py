"""A small run with a known shape, for the training tests; also a script they start in a new process.

    python tests/helpers/training_toy.py FOLDER STEPS [--layout jit|pmap] [--devices N] [--slow SECONDS] [--nan-at STEP]

trains up to STEPS in FOLDER, resuming what is there, and prints a SHA-256 over every byte of the final state.
"""

import argparse
import functools
import hashlib
import json
import os
import time

import numpy as np


def source(seed, step, size):
    """Points [size, 8] and labels [size], a function of seed and step."""
    rng = np.random.default_rng((seed, step))
    return rng.normal(size=(size, 8)).astype(np.float32), rng.integers(0, 3, size)


def make_network():
    """An MLP with one hidden layer and a table of conditions."""
    import jax
    import jax.numpy as jnp

    from diffjax import Network

    def init(key, x, c_noise, cond=None):
        a, b, c = jax.random.split(key, 3)
        width = 32
        return {
            "in": jax.random.normal(a, (x.shape[1], width)) / 3,
            "cond": jax.random.normal(b, (3, width)),
            "out": jax.random.normal(c, (width, x.shape[1])) / 6,
        }

    def apply(params, x, c_noise, cond=None, *, key=None):
        return jnp.tanh(x @ params["in"] + params["cond"][cond]) @ params["out"]

    return Network(init, apply)


def make_loss(network):
    """Denoising with noise by global index: mean |network(x + eps) - x|^2."""
    import jax.numpy as jnp

    from diffjax.process import normal_like, sample_keys

    def loss(params, batch, context):
        x, cond = batch
        eps = normal_like(sample_keys(context.key, context.index), x)
        error = network.apply(params, x + eps, None, cond) - x
        return jnp.mean(error**2), {"noise": jnp.mean(eps**2), "eps": eps}

    return loss


def run(folder, steps, *, layout=None, source=source, state=None, **options):
    """`train` on the toy, in a folder."""
    from diffjax.training import train

    defaults = {"batch_size": 64, "seed": 3, "log": folder / "metrics.jsonl", "log_every": 7, "progress": False}
    state = fresh_state() if state is None else state
    return train(state, layout or make_layout("jit"), source, steps=steps, **{**defaults, **options})


def logged(folder):
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def make_tx():
    """Clipping, Adam and a schedule: three kinds of optimiser state."""
    import optax

    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-2, 100)))


def make_objective(tx=None, loss=None):
    """The loss with its optimiser, or others."""
    from diffjax.training import Objective

    return Objective(loss or make_loss(make_network()), tx or make_tx())


def fresh_state():
    """The run at step 0."""
    import jax
    import jax.numpy as jnp

    from diffjax.training import init_state

    return init_state(jax.random.key(7), make_network(), make_tx(), jnp.zeros((1, 8)), jnp.zeros(1, int))


@functools.cache
def make_layout(kind, tx=None, loss=None):
    """The step under jit or pmap, over all devices; compiled once a process."""
    from diffjax.training import jit_layout, make_ema, make_train_step, pmap_layout

    objective = make_objective(tx, loss)
    if kind == "pmap":
        return pmap_layout(make_train_step(objective, ema=make_ema(0.99), axis_name="data"))
    return jit_layout(make_train_step(objective, ema=make_ema(0.99)))


def digest(state):
    """SHA-256 over every leaf of a state, keys as their data."""
    import jax

    total = hashlib.sha256()
    for leaf in jax.tree.leaves(state._replace(key=jax.random.key_data(state.key))):
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()


def main():
    """Runs the command line above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("steps", type=int)
    parser.add_argument("--layout", default="jit")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--slow", type=float, default=0.0)
    args = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"

    from diffjax.training import Checkpoints, Stopped, train

    def slow_source(seed, step, size):
        print("step", step, flush=True)
        time.sleep(args.slow)
        return source(seed, step, size)

    state = fresh_state()
    with Checkpoints(args.folder + "/checkpoints") as checkpoints:
        if checkpoints.latest() is not None:
            state = checkpoints.restore(state)
        try:
            state = train(
                state,
                make_layout(args.layout),
                slow_source if args.slow else source,
                steps=args.steps,
                batch_size=64,
                seed=3,
                checkpoints=checkpoints,
                log=args.folder + "/metrics.jsonl",
                log_every=7,
                progress=False,
                handle_signals=True,
            )
        except Stopped as stop:
            print("stopped", stop.step)
            raise SystemExit(128 + stop.signal) from None
    print(digest(state))


if __name__ == "__main__":
    main()
