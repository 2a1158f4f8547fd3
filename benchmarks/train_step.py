"""Time of a training step beside torch's: the same network, batch and optimiser, float32, blocks of steps alternating.

    python benchmarks/train_step.py unet [--width 64] [--batch 16] [--reps 15] [--steps 2] [--cores N] [--forward]
    python benchmarks/train_step.py dit [--width 256] [--depth 6] [--patch 4] [--layout jit] ...

unet is diffusers' UNet2DModel, dit its DiTTransformer2DModel, on images of --size x --size x 3 (32); ours are the
networks that `from_pretrained` makes of the same configurations (parity is tested in tests/parity). A step is the mean
squared error of a regression, its gradient, and AdamW (torch's fused one); --forward measures the network alone.

Two processes, one with torch, one with diffjax, take turns: while one works the other waits for input. Ours runs as
`diffjax train` does: a device for each core, the batch split over them, freed memory kept. Wall and CPU seconds a step,
medians over the repeats, and ratios ours / torch; below 1 is faster than torch. Needs the extra `parity`.

Results: benchmarks/RESULTS.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

WORKERS = ("torch", "ours")


def configuration(options):
    """The configuration that diffusers and `diffjax.interop` both read."""
    if options.network == "dit":
        return {
            "num_attention_heads": options.width // 64,
            "attention_head_dim": 64,
            "in_channels": 3,
            "num_layers": options.depth,
            "patch_size": options.patch,
            "sample_size": options.size,
            "num_embeds_ada_norm": 10,
        }
    return {
        "block_out_channels": [options.width, 2 * options.width, 2 * options.width],
        "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
        "attention_head_dim": 64,
        "layers_per_block": 2,
        "norm_num_groups": min(32, options.width // 4),
    }


def torch_step(options):
    """(step, number of parameters) of torch."""
    import torch
    from diffusers import DiTTransformer2DModel, UNet2DModel

    torch.set_num_threads(options.cores)
    network = {"unet": UNet2DModel, "dit": DiTTransformer2DModel}[options.network](**configuration(options))
    network.train(not options.forward)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    shape = options.batch, 3, options.size, options.size
    x, target, t = torch.randn(shape), torch.randn(shape), torch.arange(options.batch)
    more = (t % 10,) if options.network == "dit" else ()

    def forward():
        with torch.no_grad():
            return network(x, t, *more).sample.sum().item()

    def step():
        optimiser.zero_grad()
        loss = torch.mean((network(x, t, *more).sample - target) ** 2)
        loss.backward()
        optimiser.step()
        return loss.item()

    return forward if options.forward else step, sum(p.numel() for p in network.parameters())


def our_step(options):
    """(step, number of parameters) of diffjax, as the command line sets it up."""
    from diffjax.cli._devices import default_layout, use_cores
    from diffjax.cli._memory import keep_memory

    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    use_cores(options.batch, options.cores)
    keep_memory()
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from diffjax import from_linen
    from diffjax.interop import module_from_config
    from diffjax.training import Objective, TrainState, jit_layout, make_train_step, pmap_layout

    name = {"unet": "UNet2DModel", "dit": "DiTTransformer2DModel"}[options.network]
    network = from_linen(module_from_config({**configuration(options), "_class_name": name}))
    rng, shape = np.random.default_rng(0), (options.batch, options.size, options.size, 3)
    x, target = rng.normal(size=(2, *shape)).astype(np.float32)
    t = np.arange(options.batch, dtype=np.float32)
    cond = (np.arange(options.batch) % 10,) if options.network == "dit" else ()
    started = time.perf_counter()
    params = jax.block_until_ready(network.init(jax.random.key(0), x, t, *cond))
    print(f"parameters made in {time.perf_counter() - started:.2f} s", file=sys.stderr)
    count, tx = sum(leaf.size for leaf in jax.tree.leaves(params)), optax.adamw(1e-4)

    def loss(params, batch, context):
        x, t, target, *cond = batch
        return jnp.mean((network.apply(params, x, t, *cond, key=context.key) - target) ** 2), {}

    name = options.layout or default_layout(jax.devices())
    axis = "data" if name == "pmap" else None
    step_fn = make_train_step(Objective(loss, tx), ema=lambda step, params, ema: ema, axis_name=axis)
    layout = (pmap_layout if name == "pmap" else jit_layout)(step_fn)
    state = TrainState(jnp.int32(0), params, {}, tx.init(params), jax.random.key(0))
    state, batch = layout.put_state(state), layout.put_batch((x, t, target, *cond))
    plain = jit_layout(step_fn)
    params, x, t, *cond = plain.put_state(params), *plain.put_batch((x, t, *cond))
    apply = jax.jit(lambda params, x, t, *cond: network.apply(params, x, t, *cond))

    def forward():
        return float(jnp.sum(apply(params, x, t, *cond)))

    def step():
        nonlocal state
        state, metrics = layout.step(state, batch)
        return float(metrics["loss"])

    return forward if options.forward else step, count


def work(options):
    """A worker: for each line that comes, runs the steps and answers wall and CPU seconds of one."""
    started = time.perf_counter()
    step, count = (torch_step if options.worker == "torch" else our_step)(options)
    step()
    print(json.dumps({"parameters": count, "ready": time.perf_counter() - started}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(options.steps):
            step()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(json.dumps({"wall": wall / options.steps, "cpu": cpu / options.steps}), flush=True)


def measure(options):
    """{worker: [answers]} of both workers in turn, the first answer of each left out."""
    command = [sys.executable, __file__, *sys.argv[1:]]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = {name: subprocess.Popen([*command, "--worker", name], **pipes) for name in WORKERS}
    try:
        for name, worker in workers.items():
            about = json.loads(worker.stdout.readline())
            print(f"{name}: {about['parameters']:,} parameters, first step after {about['ready']:.1f} s", flush=True)
        found = {name: [] for name in WORKERS}
        for _ in range(options.reps + 1):
            for name, worker in workers.items():
                worker.stdin.write("go\n")
                worker.stdin.flush()
                found[name].append(json.loads(worker.stdout.readline()))
        return {name: answers[1:] for name, answers in found.items()}
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", choices=("unet", "dit"))
    parser.add_argument("--width", type=int)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--reps", type=int, default=15)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--forward", action="store_true")
    parser.add_argument("--layout", choices=("jit", "pmap"), help="of the command line's; its default by default")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.width = options.width or {"unet": 64, "dit": 256}[options.network]
    if options.worker:
        return work(options)
    found = measure(options)
    print(f"{options.cores} cores, batch {options.batch}, load {os.getloadavg()[0]:.1f}")
    for clock in ("wall", "cpu"):
        torch, ours = (statistics.median(answer[clock] for answer in found[name]) for name in WORKERS)
        pairs = [a[clock] / b[clock] for a, b in zip(found["ours"], found["torch"], strict=True)]
        ratio = statistics.median(pairs)
        print(f"{clock:5} torch {1e3 * torch:7.0f} ms, ours {1e3 * ours:7.0f} ms, ratio {ratio:.2f} (median of pairs)")


if __name__ == "__main__":
    main()
