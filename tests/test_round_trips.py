"""What one part of the library gives another takes: every grid and method, and the command that training ends with."""

import functools
import inspect
import itertools
import shlex
import shutil
import struct

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TRAIN, call
from registry import ALL_GRIDS, ALL_PROCESSES, each_process

import diffjax as dj
from diffjax import process as processes, samplers
from diffjax.cli import main
from diffjax.config import PRESETS
from diffjax.interop import SCHEDULERS, read_scheduler
from diffjax.samplers import as_diffrax_solver, step_weights

KEY = jax.random.key(0)
CHAIN = 30


def half(x, t):
    """A denoiser."""
    return 0.5 * x


def sampled(process, ts, stepper, final_denoise=True):
    """What `sample` ends in from ones, which has to be finite."""
    x = dj.sample(KEY, process, half, jnp.ones((2, 1)), ts, stepper, final_denoise=final_denoise)
    assert np.all(np.isfinite(x)), ts


def assert_taken(process, stepper, ts, about):
    """A grid descends within [0, 1] in float32, as `sample` takes it, and each step has finite weights there."""
    grid = np.asarray(ts, np.float32).astype(np.float64)
    assert grid.ndim == 1, about
    assert len(grid) > 1, about
    assert np.all(np.diff(grid) < 0), about
    assert grid[-1] >= 0, about
    assert grid[0] <= 1, about
    for leaf in jax.tree.leaves(step_weights(stepper, process, grid)):
        assert np.shape(leaf)[0] == len(grid) - 1, about
        assert np.all(np.isfinite(np.asarray(leaf, np.float32))), about


# --- scheduler -> sample ---


def configurations(name):
    """Every spacing, end and grid that a scheduler's file may name, on a short chain."""
    _, defaults, only = SCHEDULERS[name]
    keys = ("timestep_spacing", "final_sigmas_type", "use_karras_sigmas", "sigma_schedule")
    choices = {key: [value for value in only[key] if value is not None] for key in keys if key in only}
    choices |= {"set_alpha_to_one": (True, False)} if "set_alpha_to_one" in defaults else {}
    choices |= {"num_train_timesteps": (CHAIN,)} if "num_train_timesteps" in defaults else {}
    choices |= {"skip_prk_steps": (True, False)} if "skip_prk_steps" in defaults else {}
    for values in itertools.product(*choices.values()):
        yield {"_class_name": name, **dict(zip(choices, values, strict=True))}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_at_every_number_of_steps_gives_what_sample_takes(name):
    """Up to as many steps as it was trained on, where each is taken once."""
    for config in configurations(name):
        for steps in (2, 10, CHAIN - 1, CHAIN):
            s = read_scheduler(config, steps)
            assert_taken(s.process, s.stepper, s.ts, (config, steps))
            start = 0 if name != "PNDMScheduler" else 1 if config["skip_prk_steps"] else 3 * min(3, steps - 1)
            assert len(s.ts) - 1 + s.final_denoise - start in (steps, steps - 1), (config, steps)
            if steps == CHAIN and config.get("num_train_timesteps") and not config.get("use_karras_sigmas"):
                told = np.asarray(s.parameterisation.noise_level(s.process, jnp.asarray(s.ts)))
                told = np.unique(np.round(told, 1))[::-1][:CHAIN]
                every = np.arange(CHAIN)[::-1] + (name == "FlowMatchEulerDiscreteScheduler")
                np.testing.assert_allclose(told, every, atol=1e-3)
        with pytest.raises(ValueError, match="steps: at least 2 are needed, got 1"):
            read_scheduler(config, 1)
    sampled(s.process, s.ts, s.stepper, s.final_denoise)


# --- recommended -> sample ---


@pytest.mark.slow
def test_every_recommendation_is_sampled():
    """On both sides of each border of `recommended`."""
    source = inspect.getsource(samplers.recommended)
    borders = {int(word.strip(":;,)")) for line in source.splitlines() for word in _after(line)}
    assert borders == {7, 9, 15, 16, 30, 60}, "a border that the budgets below do not have"
    cases = [(nfe, 3072, False) for nfe in (1, 6, 7, 14, 15, 30)]
    cases += [(nfe, 64, True) for nfe in (1, 7, 9, 14, 15, 30, 60)] + [(1, 2, True), (6, 2, True)]
    made = []

    @jax.jit
    def grids():
        each = [dj.samplers.recommended(dj.Cosine(), nfe, features=f, smooth=smooth) for nfe, f, smooth in cases]
        made.extend(stepper for stepper, _ in each)
        return [ts for _, ts in each]

    seen = set()
    for case, ts, stepper in zip(cases, map(np.asarray, grids()), made, strict=True):
        assert_taken(dj.Cosine(), stepper, ts, case)
        kind = (type(stepper), case[2])
        if kind not in seen:  # the others differ in numbers alone
            sampled(dj.Cosine(), ts, stepper)
            seen.add(kind)


def _after(line):
    """The numbers that nfe and features are compared with in a line."""
    words = line.split()
    places = [i for i, word in enumerate(words[:-2]) if word in ("nfe", "features") and words[i + 1] in ("<", ">=")]
    return [words[i + 2] for i in places]


# --- grid -> sample, integrate ---


def test_every_grid_maker_has_a_row():
    for module in (dj, processes):
        makers = [name for name in dir(module) if name.endswith("_grid") and not name.startswith("_")]
        assert {name.removesuffix("_grid") for name in makers} - {"optimise"} <= set(ALL_GRIDS)
    assert {make.__name__.removesuffix("_grid") for make in ALL_GRIDS.values()} == set(ALL_GRIDS)


@pytest.mark.parametrize("process", each_process(("vp", "ddpm-zero-snr")))
def test_every_grid_is_sampled_and_integrated(process):
    """In float32, as users have it, from end to end of the process's interval."""
    process = ALL_PROCESSES[process]()

    @jax.jit
    def grids():
        return {(name, n): make(process, n) for name, make in ALL_GRIDS.items() for n in (1, 4, 100)}

    solvers = diffrax.Heun(), as_diffrax_solver(dj.DDIM())
    for (name, n), ts in grids().items():
        assert ts.shape == (n + 1,), name
        assert_taken(process, dj.DDIM(), ts, name)
        if n != 4:  # the same programs for all processes and grids of a size
            continue
        sampled(process, ts, dj.DDIM())
        for solver in solvers if name not in ("angle", "line") else ():  # of flow maps: to where logsnr is infinite
            flow = dj.probability_flow(process, half)
            solution = dj.integrate(flow, jnp.ones((2, 1)), ts, solver=solver)
            assert solution.ok, (name, n)
            assert np.all(np.isfinite(solution.x0)), (name, n)


def test_an_optimised_grid_is_sampled_and_integrated():
    process = dj.Cosine()
    ts = dj.samplers.optimise_grid(
        KEY, process, half, (2, 1), dj.DDIM(), dj.logsnr_grid(process, 3), reference_steps=3, steps=1
    )
    sampled(process, ts, dj.DDIM())
    solution = dj.integrate(dj.probability_flow(process, half), jnp.ones((2, 1)), ts, solver=diffrax.Euler())
    assert solution.ok


# --- train -> diffjax sample ---


def no_data(folder):
    """Of presets that bring their own."""
    return []


def of_mnist(folder):
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
    labels = np.arange(40, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">{values.ndim + 1}I", 0x0800 + values.ndim, *values.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + values.tobytes())
    return ["--data.path", folder]


def of_cifar10(folder):
    records = np.random.default_rng(0).integers(0, 256, (8, 3073), np.uint8)
    records[:, 0] = np.arange(8)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        (folder / name).write_bytes(records.tobytes())
    return ["--data.path", folder]


def of_texts(name, folder):
    line = ["encode-text", name, "--out", str(folder), "--size", "tiny", "--vocabulary", "80"]
    assert main(line) == 0
    return ["--data.text", folder]


IMAGES = ["--network.channels", 2, "--network.blocks", 1, "--network.attention"]
IMAGES += ["--batch-size", 8, "--sampler.steps", 2, "--samples", 8]
FAMILY = ["--family.width", 4, "--batch-size", 8, "--samples", 8]
# Data, and options beside them.
ROWS = {
    "digits": (no_data, IMAGES),
    "mnist": (of_mnist, IMAGES),
    "cifar10": (of_cifar10, IMAGES),
    "toy2d": (no_data, TRAIN[2:]),
    **{name: (functools.partial(of_texts, name), IMAGES) for name in ("shapes", "digit_scenes")},
    **dict.fromkeys(("digits_vae", "digits_hvae", "digits_autoencoder", "toy2d_vae"), (no_data, FAMILY)),
    **dict.fromkeys(("digits_gan", "digits_ddgan", "toy2d_gan", "toy2d_ddgan"), (no_data, FAMILY)),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "toy2d" else pytest.mark.slow) for n in PRESETS])
def test_the_command_that_training_ends_with_draws_samples(name, toy_run, tmp_path, monkeypatch, capfd):
    """As it is printed, in a shell's words, in a folder whose name has a blank."""
    data, options = ROWS[name]
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    if name == "toy2d":  # trained already
        shutil.copytree(toy_run, "a run")
    argv = ["train", name, *data(tmp_path / "data"), "--steps", 2, *options, "--out", "a run"]
    code, out, err = call(capfd, *argv)
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("draw more: ")]
    program, *command = shlex.split(line.removeprefix("draw more: "))
    assert program == "diffjax"
    code, _, err = call(capfd, *command)
    assert code == 0, err
    assert (tmp_path / command[command.index("--out") + 1]).stat().st_size > 0
