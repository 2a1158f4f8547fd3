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
# # Quickstart: diffusion by composition, measured against the exact answer
#
# Data in the plane whose diffusion is known in closed form: eight Gaussians on a ring. We train a small network on
# samples of it, then sample and compute likelihoods, each time with the exact denoiser beside the trained one. What
# is wrong with the exact denoiser is the solver's error; what is more wrong with the trained one is the network's.
#
# About three minutes on two CPU cores; `DIFFJAX_FAST=1` makes it one.

# %%
import os

import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from tqdm import tqdm

import diffjax as dj
from diffjax import data, losses, metrics, networks, viz

FAST = os.environ.get("DIFFJAX_FAST") == "1"
STEPS = 600 if FAST else 4000
POINTS = 1000 if FAST else 4000

# %% [markdown]
# ## The process and the truth
#
# A process is `alpha(t)` and `sigma(t)`: `xt = alpha x0 + sigma eps`. The mixture stays a mixture under it, so its
# score, its denoiser `E[x0 | xt]` and its density are known at all times.

# %%
toy = data.mixture()
truth = dj.GaussianMixture(jnp.asarray(toy.means), jnp.asarray(toy.covariances), jnp.asarray(toy.weights))
process = dj.VariancePreserving()
exact = dj.exact_denoiser(truth, process)

fig, axes = plt.subplots(1, 4, figsize=(14, 3.6))
for ax, t in zip(axes, (0.0, 0.1, 0.3, 1.0), strict=True):
    viz.density(lambda x, t=t: truth.log_prob(process, x, t), ax=ax)
    if t > 0:
        viz.arrows(lambda x, t=t: process.sigma(t) * truth.score(process, x, t), points=13, ax=ax)
    ax.set_title(f"t = {t}: logsnr {float(process.logsnr(t)):.1f}")
fig.tight_layout()

# %% [markdown]
# ## The loss
#
# `denoising_loss` puts together a network, a process, what the network predicts, when to look, and how much it
# counts. It is a plain function of the parameters: `jax.value_and_grad`, your optimiser, your loop.

# %%
network = dj.from_linen(networks.MLP(width=128, depth=3))
diffusion = dj.Diffusion(network, process, dj.VPrediction())
tx = optax.adam(optax.cosine_decay_schedule(2e-3, STEPS))
key = jax.random.key(0)
x0, _ = toy(0, 0, 512)
params = network.init(key, jnp.asarray(x0), jnp.zeros(512))


@jax.jit
def step(params, average, opt_state, x0, i):
    def loss(params):
        times = dj.StratifiedTimes(process)
        return dj.denoising_loss(
            diffusion, params, jax.random.fold_in(key, i), x0, times=times, weighting=losses.constant
        )

    (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = tx.update(gradient, opt_state, params)
    params = optax.apply_updates(params, updates)
    return params, optax.incremental_update(params, average, 0.01), opt_state, value


average, opt_state, history = params, tx.init(params), []
for i in tqdm(range(STEPS), desc="train", mininterval=5):
    params, average, opt_state, value = step(params, average, opt_state, jnp.asarray(toy(0, i, 512)[0]), i)
    history.append(value)

trained = dj.make_denoiser(diffusion, average)
print(f"loss, mean of the last 100 steps: {float(jnp.mean(jnp.stack(history[-100:]))):.4f}")

# %% [markdown]
# How far the trained score is from the exact one, by noise level: the root mean square of
# `sigma (score - exact score)`, which is the error of the predicted noise.

# %%
x = truth.sample(jax.random.key(1), POINTS)
eps = jax.random.normal(jax.random.key(2), x.shape)
for t in (0.01, 0.05, 0.2, 0.5, 0.9):
    xt = dj.perturb(process, x, eps, t)
    difference = dj.score(process, trained, xt, t) - truth.score(process, xt, t)
    print(f"t = {t:4}: eps error {float(process.sigma(t) * jnp.sqrt(jnp.mean(difference**2))):.3f}")

# %% [markdown]
# ## Samplers
#
# A sampler is a stepper and a grid. With the exact denoiser, its error to the probability flow is its own: DDIM is
# of order one, Heun and DPM-Solver++ (2M) of order two. The reference is diffrax's adaptive solver on the same flow.

# %%
xT = dj.prior(jax.random.key(3), process, (256, 2))
ends = dj.logsnr_grid(process, 1)
flow = dj.integrate(
    dj.probability_flow(process, exact),
    xT,
    ends,
    solver=diffrax.Dopri8(),
    controller=diffrax.PIDController(1e-6, 1e-6),
)
budgets = [8, 16, 32, 64]
fig, ax = plt.subplots(figsize=(5, 3.6))
for stepper in (dj.DDIM(), dj.Heun(), dj.DPMpp2M()):
    errors, nfe = [], []
    for n in budgets:
        grid = dj.logsnr_grid(process, n)
        got = dj.sample(key, process, exact, xT, grid, stepper, final_denoise=False)
        # The median: a trajectory that falls to another component of the mixture is a flip, not an error of size.
        errors.append(float(jnp.median(jnp.linalg.norm(got - flow.x0, axis=1))))
        nfe.append(n * stepper.evaluations_per_step)
    order = -np.polyfit(np.log(budgets[1:]), np.log(errors[1:]), 1)[0]
    name = type(stepper).__name__
    print(
        f"{name:8} errors {' '.join(f'{e:.1e}' for e in errors)}   fitted order {order:.2f}, declared {stepper.order}"
    )
    ax.loglog(nfe, errors, "o-", label=name)
ax.set(xlabel="evaluations of the denoiser", ylabel="median error to the exact flow")
ax.legend()
fig.tight_layout()

# %% [markdown]
# Samples from the trained network, by the scan and by the reverse SDE through diffrax, beside the data. The sliced
# Wasserstein distance is between samples and fresh data; its floor is between two sets of data.

# %%
xT = dj.prior(jax.random.key(4), process, (POINTS, 2))
grid = dj.logsnr_grid(process, 30)
by_scan = dj.sample(jax.random.key(5), process, trained, xT, grid, dj.DPMpp2M())
path = dj.per_sample_path(jax.random.key(6), POINTS, (2,))
fine = dj.logsnr_grid(process, 200)
by_sde = dj.integrate(dj.reverse_sde(process, trained, path), xT, fine, solver=diffrax.Euler()).x0

fig, axes = plt.subplots(1, 3, figsize=(12, 4))
fresh, more = (truth.sample(jax.random.key(seed), POINTS) for seed in (7, 8))
for ax, (name, points) in zip(
    axes, {"data": fresh, "DPM++ 2M, 31 evaluations": by_scan, "reverse SDE, 200": by_sde}.items(), strict=True
):
    viz.scatter(points, size=3, ax=ax)
    ax.set(title=name, xlim=(-2.2, 2.2), ylim=(-2.2, 2.2))
    print(f"{name:26} sliced Wasserstein {float(metrics.sliced_wasserstein(key, points, more)):.3f}")
fig.tight_layout()

# %% [markdown]
# ## Likelihood
#
# Along the flow, `log p(x0) = log p_1(x1) + int div u dt`. With the exact denoiser and the exact density at t = 1 the
# answer is the closed form; with the trained denoiser it is the network's own density.

# %%
t0 = process.time_from_logsnr(14.0)  # the default in float32: as near to the data as it can tell
t_max = process.interval()[1]
held_out = truth.sample(jax.random.key(9), 256)
closed_form = truth.log_prob(process, held_out, t0)
terminal = lambda x: truth.log_prob(process, x, t_max)
checked = dj.log_likelihood(key, process, exact, held_out, terminal=terminal)
print(f"exact denoiser: worst error {float(jnp.max(jnp.abs(checked.nats - closed_form))):.1e} nats, nfe {checked.nfe}")
network_nats = dj.log_likelihood(key, process, trained, held_out)
data_mean, network_mean = float(jnp.mean(closed_form)), float(jnp.mean(network_nats.nats))
print(f"log density of held-out data: its own {data_mean:+.3f} nats, the trained network's {network_mean:+.3f}")
estimated = dj.log_likelihood(key, process, trained, held_out, divergence=dj.Hutchinson(8))
gap = float(jnp.mean(estimated.nats - network_nats.nats))
error = float(jnp.sqrt(jnp.mean(estimated.standard_error**2) / 256))
print(f"Hutchinson, 8 probes, minus the exact trace: {gap:+.4f} +- {error:.4f} nats")
