# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Few steps: flow maps, learned and exact
#
# The probability flow carries noise to data. Its map `X(xt, t, s)`, from time t to an earlier time s, is what every
# few-step method learns: with it, one evaluation gives a sample. Here the data are eight Gaussians, whose exact map is
# known, so that we see not only whether samples look right, but whether each is where its noise belongs.
#
# About two minutes on two CPU cores; `DIFFJAX_FAST=1` makes it half a minute.

# %%
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from tqdm import tqdm

import diffjax as dj
from diffjax import data, flow_maps, losses, metrics, networks, viz
from diffjax.process import angle_grid

FAST = os.environ.get("DIFFJAX_FAST") == "1"
UPDATES, STAGE = (300, 100) if FAST else (3000, 800)  # of the denoiser, and of each stage of distillation
POINTS = 1000 if FAST else 10_000
FIRST = 4 if FAST else 16  # steps of DDIM that the first stage of distillation halves

# %% [markdown]
# ## The exact map
#
# `exact_flow_map` solves the flow of a known distribution to rounding; `move` carries points from any time to any
# other. Each noise sample has the colour of its angle, and keeps it on its way: the map cuts the plane into eight
# sectors, one for each mode, and the cuts between them are where a network has to be steep.

# %%
std = 0.106  # of a mode; each coordinate of the mixture has variance 1
truth = dj.GaussianMixture(jnp.asarray(data.mixture(std=std).means, jnp.float32), std**2)
process = dj.Cosine()
exact = dj.exact_flow_map(truth, process)
from_noise = jax.jit(lambda xT, s: exact.move(xT, 1.0, s))  # each sample to its own time s

xT = dj.prior(jax.random.key(0), process, (POINTS, 2))
flow = from_noise(xT, jnp.zeros(POINTS))
first, times = xT[: POINTS // 40], jnp.linspace(1.0, 0.0, 40)
paths = from_noise(jnp.tile(first, (40, 1)), jnp.repeat(times, len(first))).reshape(40, len(first), 2)
colours = plt.cm.hsv((jnp.arctan2(xT[:, 1], xT[:, 0]) / (2 * jnp.pi)) % 1.0)


def show(ax, x, title):
    viz.scatter(x[:2000], color=colours[:2000], size=4, ax=ax)
    ax.set(title=title, xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))


fig, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
show(axes[0], xT, "noise xT")
axes[1].set_prop_cycle(color=colours[:60])
viz.trajectories(paths[:, :60], ax=axes[1])
axes[1].set(title="trajectories of the flow", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
show(axes[2], flow, "exact map X(xT, 1, 0)")

# %% [markdown]
# ## A denoiser, and DDIM from the same noise
#
# A small network is trained by the usual denoising loss. It is told the angle of the process, atan2(sigma, alpha), as
# its time: flow maps turn on that clock, and their derivatives in it stay bounded.

# %%
network = dj.from_linen(networks.MLP(width=96, depth=3))
diffusion = dj.Diffusion(network, process, dj.parameterisation.EDMPrediction(1.0, clock="angle"))


def train(loss, params, updates, rate, chunk=100):
    """Parameters after Adam with a learning rate that falls linearly to 0; `loss(params, key, x0)` is a scalar."""
    tx = optax.adam(optax.linear_schedule(rate, 0.0, updates), b2=0.99)

    def update(carry, key):
        params, state = carry
        data_key, key = jax.random.split(key)
        change, state = tx.update(jax.grad(loss)(params, key, truth.sample(data_key, 256)), state)
        return (optax.apply_updates(params, change), state), None

    run = jax.jit(lambda carry, keys: jax.lax.scan(update, carry, keys)[0])
    carry = (params, tx.init(params))
    for key in tqdm(jax.random.split(jax.random.key(1), updates // chunk), desc="train", mininterval=5):
        carry = run(carry, jax.random.split(key, chunk))
    return carry[0]


def denoising(params, key, x0):
    times = dj.StratifiedTimes(process)
    return dj.denoising_loss(diffusion, params, key, x0, times=times, weighting=losses.on_v)[0]


params = network.init(jax.random.key(2), jnp.zeros((2, 2)), jnp.zeros(2))
params = train(denoising, params, UPDATES, 2e-3)
denoiser = dj.make_denoiser(diffusion, params)

# %% [markdown]
# Two measures: the sliced Wasserstein distance to fresh exact samples, for the distribution (its floor is that of the
# exact map's own samples), and the root mean square distance to the exact map from the same noise, for the map.

# %%
fresh = truth.sample(jax.random.key(3), POINTS)


def measure(method, steps, x):
    """Prints both distances and returns a title with the first."""
    distance = float(metrics.sliced_wasserstein(jax.random.key(4), x, fresh))
    to_flow = float(jnp.sqrt(jnp.mean(jnp.sum((x - flow) ** 2, axis=1))))
    name = f"{method}, {steps} step{'s' if steps > 1 else ''}"
    print(f"{name:20} sliced Wasserstein {distance:.3f}   to the exact map {to_flow:.3f}")
    return f"{name}: {distance:.3f}"


ddim = {}
for steps in (1, 2, 4) if FAST else (1, 2, 4, 16):
    ddim[steps] = dj.sample(None, process, denoiser, xT, angle_grid(process, steps), dj.DDIM(), final_denoise=False)

titles = {steps: measure("DDIM", steps, x) for steps, x in ddim.items()}
floor = measure("exact map", 1, flow)
fig, axes = plt.subplots(1, 4, figsize=(14, 3.8), layout="constrained")
for ax, steps in zip(axes, (1, 2, 4), strict=False):
    show(ax, ddim[steps], titles[steps])
show(axes[3], flow, floor)

# %% [markdown]
# One step of DDIM is E[x0 | xT], the mean of the data, whatever the noise; at four, modes are joined by bridges.
#
# ## Progressive distillation
#
# A student learns to do two steps of its teacher in one; then it is the teacher of the next, which has half as many.
# The first teacher is DDIM at 16 steps. Every student is a flow map that knows the steps of its grid, and `Jump`
# samples by it at one evaluation a step.

# %%
teacher, students = denoiser, {}
for steps in [FIRST >> stage for stage in range(1, FIRST.bit_length())]:
    grid, fine = angle_grid(process, steps), angle_grid(process, 2 * steps)

    def distillation(params, key, x0, teacher=teacher, grid=grid, fine=fine):
        loss, _ = flow_maps.progressive_loss(diffusion, params, key, x0, teacher=teacher, grid=grid, teacher_grid=fine)
        return loss

    params = train(distillation, params, STAGE, 1e-3)
    teacher = dj.make_flow_map(diffusion, params, knows=grid)
    students[steps] = dj.sample(None, process, teacher, xT, grid, dj.Jump())

title = measure("DDIM", FIRST, ddim[FIRST])
titles = {steps: measure("student", steps, x) for steps, x in students.items()}
floor = measure("exact map", 1, flow)
fig, axes = plt.subplots(1, 4, figsize=(14, 3.8), layout="constrained")
show(axes[0], ddim[1], "DDIM, 1 step")
show(axes[1], ddim[FIRST], title)
show(axes[2], students[1], titles[1])
show(axes[3], flow, floor)

# %% [markdown]
# ## All methods at equal budget
#
# `scripts/few_steps.py` trains each method for a minute of one core on these data, with this network, from the same
# teacher (methods without one have its minute as well), and measures the same. What it found is in a CSV beside it.

# %%
here = Path(__file__).parent if "__file__" in globals() else Path.cwd()  # a script, or a notebook in its own folder
sys.path.insert(0, str(here.parent / "scripts"))
import few_steps as study

if study.OUT.is_file():
    print("\n".join(study.table(study.OUT)))
    study.draw(study.OUT, plt.figure(figsize=(10, 4.2), layout="constrained"))

# %% [markdown]
# Progressive distillation keeps the quality of its teacher's 16 steps down to a single one; at one step continuous-time
# consistency distillation (sCD) and shortcut models come close, then MeanFlow with the teacher, MeanFlow, and
# consistency training, whose seeds differ by twice. Shortcut models and MeanFlow gain with each step and stay near the
# flow. Consistency models know s = 0 alone, so that their further steps need fresh noise: that helps where one step is
# poor (easy consistency), but samples are no longer where the first noise belongs, and their distance to the exact flow
# grows.
