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
# # Posterior collapse, exactly
#
# A latent of a VAE is collapsed where its posterior equals its prior: its rate KL(q(z|x) || p(z)) is 0, and it says
# nothing about x. Three cases, each beside its exact answer:
#
# 1. A linear VAE, where a latent collapses as soon as beta sigma^2 exceeds its eigenvalue of the data's covariance.
# 2. A nonlinear VAE on digits, which follows the same staircase.
# 3. An autoregressive decoder, which learns p(x) without latents, and what free bits, a delta-VAE and warm-up do.
#
# About a minute and a half on one CPU core; `DIFFJAX_FAST=1` makes it 20 seconds.

# %%
import math
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import diffjax as dj
from diffjax import data, networks, vae, viz

FAST = os.environ.get("DIFFJAX_FAST") == "1"
LINEAR, DIGITS, STRIPES = (200, 40, 150) if FAST else (4000, 8000, 12_000)  # updates of each model


def train(loss, params, updates, rate):
    """(parameters, each step's mean rate) after Adam; `loss(params, key, step)` is (a scalar, aux)."""
    tx = optax.adam(optax.cosine_decay_schedule(rate, updates), b2=0.99)

    def update(carry, given):
        params, state = carry
        slopes, aux = jax.grad(loss, has_aux=True)(params, *given)
        change, state = tx.update(slopes, state)
        return (optax.apply_updates(params, change), state), jnp.mean(aux["rate"])

    steps = jax.random.split(jax.random.key(1), updates), jnp.arange(updates)
    (params, _), rates = jax.lax.scan(update, (params, tx.init(params)), steps)
    return params, rates


# %% [markdown]
# ## The linear VAE
#
# With a linear encoder and decoder a VAE is probabilistic PCA (Lucas et al. 2019). Latent i belongs to the eigenvalue
# lambda_i of the data's covariance, and at the optimum its rate is
#
# $$\mathrm{KL}_i = \max\left(0, \tfrac12 \log \frac{\lambda_i}{\beta \sigma^2}\right).$$
#
# Beta and the decoder's variance sigma^2 act through their product alone. So the trained models here vary either one:
# half of them have beta = 1 and any sigma^2, the others sigma^2 = 1/2 and any beta. All are trained at once, by `vmap`.

# %%
eigenvalues = 2.0 ** np.arange(3, -3, -1)
features = latents = len(eigenvalues)
axes_of_data = np.linalg.qr(np.random.default_rng(0).normal(size=(features, features)))[0]
root = jnp.asarray(axes_of_data * np.sqrt(eigenvalues), jnp.float32)
noises = 2.0 ** np.arange(-2.25, 4.0, 0.5)  # beta sigma^2, between the eigenvalues
by_variance = np.arange(len(noises)) % 2 == 0
variances = np.where(by_variance, noises, 0.5)

encoder = dj.from_linen(networks.Perceptron((2 * latents,), depth=0))
decoder = dj.from_linen(networks.Perceptron((features,), depth=0))


def fit_linear(variance, beta):
    """(active units, rates by latent) of a trained linear VAE."""
    model = vae.VAE(encoder, decoder, vae.GaussianLikelihood(jnp.sqrt(variance)), latents)
    draw = lambda key, n: jax.random.normal(key, (n, features)) @ root.T

    def loss(params, key, step):
        data_key, key = jax.random.split(key)
        return vae.negative_elbo(model, params, key, draw(data_key, 128), beta=beta)

    params, _ = train(loss, model.init(jax.random.key(2), jnp.zeros((1, features))), LINEAR, 0.03)
    (level,) = vae.infer(model, params, jax.random.key(3), draw(jax.random.key(4), 4000)).levels
    return vae.active_units(level.posterior), vae.rate_by_latent(level)


active, rates = jax.device_get(jax.jit(jax.vmap(fit_linear))(variances, noises / variances))
rates = -np.sort(-rates, axis=1)  # the order of latents is the network's own
optimum = jax.jit(jax.vmap(vae.rates_at_optimum, (None, 0)))
exact = np.asarray(optimum(eigenvalues, noises))
print("beta sigma^2     active: trained, exact     total rate: trained, exact (nats)")
for noise, on, rate, truth in zip(noises, active, rates, exact, strict=True):
    print(f"{noise:12.3f} {on.sum():17d} {(truth > 0).sum():6d} {rate.sum():22.3f} {truth.sum():6.3f}")
print(f"largest error of a latent's rate: {np.max(np.abs(rates - exact)):.3f} nats")

# %%
fine = np.geomspace(0.15, 16, 400)
curves = np.asarray(optimum(eigenvalues, fine))


def staircase(ax, fine, curves, eigenvalues, title):
    """Active units of the linear optimum against the noise, one step at each eigenvalue."""
    for value in eigenvalues:
        ax.axvline(value, color="0.85", linewidth=1, zorder=0)
    ax.step(fine, (curves > 0).sum(axis=1), where="post", color="0.35", label="linear optimum, exact")
    ax.set(xscale="log", xlabel=r"$\beta \sigma^2$", ylabel="active units", title=title)


fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
staircase(axes[0], fine, curves, eigenvalues, "Active units: one step at each eigenvalue")
for chosen, marker, label in (
    (by_variance, "o", r"trained, $\beta = 1$, $\sigma^2$ varied"),
    (~by_variance, "D", r"trained, $\sigma^2 = 1/2$, $\beta$ varied"),
):
    axes[0].plot(noises[chosen], active.sum(axis=1)[chosen], marker, markersize=6, label=label)
for i, value in enumerate(eigenvalues):
    colour = plt.cm.viridis(i / latents)
    axes[1].plot(fine, curves[:, i], color=colour, label=rf"$\lambda = {float(value):g}$")
    axes[1].plot(noises, rates[:, i], "o", color=colour, markersize=4)
title = "Rate by latent: exact and trained (dots)"
axes[1].set(xscale="log", xlabel=r"$\beta \sigma^2$", ylabel="rate (nats)", title=title)
for ax in axes:
    ax.legend(loc="upper right")

# %% [markdown]
# Nothing has gone wrong in the collapsed models: they are at the maximum of their bound. A decoder whose variance is
# larger than lambda_i explains that direction better as noise. The cure is the variance: learned, its optimum is the
# mean of the discarded eigenvalues, which lies below every eigenvalue that is kept.

# %%
learned = jax.jit(lambda root: vae.optimal_linear_vae(jnp.zeros(features), root @ root.T, latents=3))(root)
print(f"3 latents: sigma^2 learned {learned.variance:.4f}, least eigenvalue kept {eigenvalues[2]:g}")

# %% [markdown]
# ## A nonlinear VAE
#
# A small change of any decoder away from a constant raises the bound only if it moves along a direction of the data
# with more variance than beta sigma^2. So below the largest eigenvalue no VAE stays collapsed. Above it a constant is a
# local optimum, which a nonlinear one may still beat where a few points lie far out; below it such a one is free to do
# better than the linear optimum. Here: two perceptrons on digits of 8 x 8 pixels, at seven values of sigma^2.

# %%
x0 = jnp.asarray(data.load_digits(holdout=0.0)[0])
flat = x0.reshape(len(x0), -1)
moments = np.asarray(flat).mean(axis=0), np.cov(np.asarray(flat).T, bias=True).astype(np.float32)
spectrum = np.linalg.eigvalsh(moments[1])[::-1]
hidden = 12  # latents
digit_noises = np.array([0.2, 0.35, 0.6, 1.0, 1.8, 2.4, 3.6])
encoder = dj.from_linen(networks.Perceptron((2 * hidden,), depth=1))
decoder = dj.from_linen(networks.Perceptron((8, 8, 1), depth=1))


def fit_digits(variance):
    """(active units, rates by latent, negative ELBO, reconstructions of ten digits)."""
    model = vae.VAE(encoder, decoder, vae.GaussianLikelihood(jnp.sqrt(variance)), hidden)

    def loss(params, key, step):
        data_key, key = jax.random.split(key)
        batch = x0[jax.random.randint(data_key, (128,), 0, len(x0))]
        return vae.negative_elbo(model, params, key, batch)

    params, _ = train(loss, model.init(jax.random.key(2), x0[:1]), DIGITS, 3e-3)
    inference = vae.infer(model, params, jax.random.key(3), x0)
    (level,) = inference.levels
    shown = vae.decode(model, params, (level.posterior.mean[:10],))
    return vae.active_units(level.posterior), vae.rate_by_latent(level), -jnp.mean(inference.log_weight), shown


active, rates, bounds, shown = jax.device_get(jax.jit(jax.vmap(fit_digits))(digit_noises))
linear = lambda variance: -vae.optimal_linear_vae(*moments, hidden, variance=variance).elbo(*moments)
linear_bounds = np.asarray(jax.jit(jax.vmap(linear))(digit_noises))
exact = np.asarray(optimum(spectrum[:hidden], digit_noises))
print(f"eigenvalues of the digits: {', '.join(f'{value:.2f}' for value in spectrum[:hidden])}")
print("sigma^2     active: VAE, linear     total rate: VAE, linear     negative ELBO: VAE, linear (nats)")
columns = digit_noises, active.sum(1), (exact > 0).sum(1), rates.sum(1), exact.sum(1), bounds, linear_bounds
for row in zip(*columns, strict=True):
    print("{:7.2f} {:16d} {:7d} {:19.2f} {:7.2f} {:22.2f} {:7.2f}".format(*row))

# %%
fine = np.geomspace(0.15, 4.5, 400)
curves = np.asarray(optimum(spectrum[:hidden], fine))
fig, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
staircase(axes[0], fine, curves, spectrum[:hidden], "Digits: active units")
axes[0].plot(digit_noises, active.sum(axis=1), "o", label="nonlinear VAE, trained")
axes[1].axvline(spectrum[0], color="0.85", linewidth=1, label=r"largest eigenvalue $\lambda_1$")
axes[1].plot(fine, curves.sum(axis=1), color="0.35", label="linear optimum, exact")
axes[1].plot(digit_noises, rates.sum(axis=1), "o", label="nonlinear VAE, trained")
axes[1].set(xscale="log", xlabel=r"$\beta \sigma^2$", ylabel="rate of all latents (nats)", title="Digits: rate")
at = np.array([0, 2, 3, 4, 6])
rows = np.pad(np.concatenate([np.asarray(x0)[None, :10], shown[at]])[..., 0], [(0, 0), (0, 0), (1, 1), (1, 1)])
axes[2].imshow(rows.transpose(0, 2, 1, 3).reshape(len(rows) * 10, -1), cmap="gray", vmin=-1, vmax=1)
labels = ["data", *(rf"$\sigma^2 = {float(digit_noises[i]):g}$" for i in at)]
axes[2].set_yticks(4.5 + 10 * np.arange(len(rows)), labels)
axes[2].set(xticks=[], title="Reconstructions")
for ax in axes[:2]:
    ax.set_xticks([0.2, 0.5, 1, 2, 4], ["0.2", "0.5", "1", "2", "4"])
    ax.minorticks_off()
    ax.legend(loc="upper right")

# %% [markdown]
# Below lambda_1 the nonlinear VAE has the higher bound, by a higher rate in no more latents. The end is the same for
# both. More variance blurs digits into each other, and above lambda_1 each is decoded as the mean of all.
#
# ## An autoregressive decoder
#
# The second cause of collapse is a decoder that can do without latents. Images of 4 x 4 pixels show one of four
# patterns, each pixel flipped with probability 0.1. What there is to say about an image is its pattern, and
# log p(x) is known, so that every bound has its exact limit.

# %%
side, flip = 4, 0.1
row, column = np.indices((side, side))
patterns = 2 * np.stack([row % 2, column % 2, (row + column) % 2, 0 * row])[..., None] - 1.0


def draw(key, n):
    """(images [n, 4, 4, 1] of -1 and 1, their patterns [n])."""
    pattern_key, flip_key = jax.random.split(key)
    which = jax.random.randint(pattern_key, (n,), 0, len(patterns))
    return jnp.asarray(patterns, jnp.float32)[which] * (
        1 - 2 * jax.random.bernoulli(flip_key, flip, (n, side, side, 1))
    ), which


test, which = jax.device_get(jax.jit(draw, static_argnums=1)(jax.random.key(5), 2000))
wrong = np.sum(test[:, None] != patterns, axis=(2, 3, 4))
joint = wrong * math.log(flip) + (side**2 - wrong) * math.log(1 - flip) - math.log(len(patterns))
log_p = np.logaddexp.reduce(joint, axis=1)
given_x = joint - log_p[:, None]  # log p(pattern | x)
information = math.log(len(patterns)) + np.mean(np.sum(np.exp(given_x) * given_x, axis=1))
print(
    f"mean -log p(x) = {-np.mean(log_p):.3f} nats, I(x; pattern) = {information:.3f} nats of log 4 = {math.log(4):.3f}"
)
fig, ax = plt.subplots(figsize=(6, 1.6), layout="constrained")
viz.sample_grid(test[:20], columns=10, ax=ax)
title = ax.set_title("Twenty images")

# %% [markdown]
# `vae.Autoregressive` takes any causal network. This one, for so few pixels, has a perceptron for each pixel that sees
# the `context` pixels before it in raster order and the latents: 0 is a plain decoder, whose pixels are independent
# given z, and 15 sees all.


# %%
class Causal(nn.Module):
    """`(x [b, h, w, 1], c_noise, z [b, k]) -> logits [b, h, w, 1]`, each of the `context` pixels before it and of z."""

    context: int
    width: int = 16

    @nn.compact
    def __call__(self, x, c_noise=None, z=None):
        n, normal = x[0].size, nn.initializers.normal
        before = jnp.arange(n)[None, :] - jnp.arange(n)[:, None]  # of pixel j, how far before pixel i
        seen = (before > 0) & (before <= self.context)
        kernel = self.param("kernel", normal(n**-0.5), (n, n, self.width)) * seen[..., None]
        h = jnp.einsum("bj,jiw->biw", x.reshape(-1, n), kernel) + nn.Dense(n * self.width)(z).reshape(-1, n, self.width)
        out = self.param("out", normal(self.width**-0.5), (n, self.width))
        return jnp.sum(nn.silu(h) * out, axis=-1).reshape(x.shape)


k = 2  # latents
encoder = dj.from_linen(networks.Perceptron((2 * k,), width=64, depth=1))
to_decoder = dj.from_linen(networks.Perceptron((k,), depth=0))


def fit(context, correlation, free_bits, start):
    """Figures of a trained model on the test images, and the means of its latents."""
    likelihood = vae.Autoregressive(dj.from_linen(Causal(context)), vae.Bernoulli(-1.0, 1.0), (side, side, 1))
    model = vae.VAE(encoder, to_decoder, likelihood, k, vae.AutoregressivePrior(correlation))

    def loss(params, key, step):
        data_key, key = jax.random.split(key)
        beta = vae.linear_warm_up(step, steps=STRIPES // 2, start=start)
        return vae.negative_elbo(model, params, key, draw(data_key, 128)[0], beta=beta, free_bits=free_bits)

    params, history = train(loss, model.init(jax.random.key(2), test[:1]), STRIPES, 5e-3)
    inference = vae.infer(model, params, jax.random.key(3), test)
    (level,) = inference.levels
    nats, _ = vae.mutual_information(jax.random.key(4), level.posterior)
    gap = jnp.mean(log_p - inference.log_weight)
    return jnp.stack([jnp.mean(inference.rates), nats, gap]), history, level.posterior.mean


# %% [markdown]
# Nine models are trained at once: six decoders that see more and more, and three with the last of these decoders and
# something that keeps latents in use.
#
# - *Free bits* give each latent half of log 4 nats for nothing.
# - A *delta-VAE* has an AR(1) prior that no factorised posterior matches, here with a least rate of log 4 nats. At
#   correlation 0 this prior is N(0, I), that of all others.
# - *Warm-up* raises beta from 0 to 1 over the first half of training.

# %%
contexts, everything = (0, 1, 2, 4, 8, 15), side**2 - 1
correlation = math.sqrt(15) / 4
settings = {f"sees {context} pixels": (context, 0.0, 0.0, 1.0) for context in contexts}
settings["free bits"] = (everything, 0.0, math.log(4) / k, 1.0)
settings["delta-VAE"] = (everything, correlation, 0.0, 1.0)
settings["warm-up"] = (everything, 0.0, 0.0, 0.0)
figures, histories, means = jax.device_get(jax.jit(jax.vmap(fit))(*map(np.array, zip(*settings.values(), strict=True))))
print(f"least rate of the delta-VAE: {vae.least_rate(k, correlation):.3f} nats")
print(f"{'':24} {'rate':>7} {'I(x; z)':>9} {'log p - ELBO':>14}   (nats)")
for name, row in zip(settings, figures, strict=True):
    print("{:24} {:7.3f} {:9.3f} {:14.3f}".format(name, *row))
print(f"{'exact, without latents':24} {0:7.3f} {0:9.3f} {0:14.3f}")

# %%
fig = plt.figure(figsize=(14, 7), layout="constrained")
grid = fig.add_gridspec(2, 10)
ax = fig.add_subplot(grid[0, :4])
ax.plot(contexts, figures[: len(contexts), 0], "o-", label="trained")
ax.axhline(information, color="0.6", linestyle=":", label="I(x; pattern), exact")
ax.set(
    xlabel="pixels that the decoder sees", ylabel="rate (nats)", title="A decoder that sees more uses z less", ylim=0
)
ax.legend()
ax = fig.add_subplot(grid[0, 4:])
shown = {
    0: "sees 0 pixels",
    5: "sees 15 pixels",
    6: "sees 15, free bits",
    7: "sees 15, delta-VAE",
    8: "sees 15, warm-up",
}
smooth = np.ones(50) / 50
for i, label in shown.items():
    ax.plot(np.convolve(histories[i], smooth, mode="valid"), label=label)
ax.axhline(information, color="0.6", linestyle=":")
ax.set(xlabel="update", ylabel="rate of the batch (nats)", title="Rate in training", ylim=(0, 5))
ax.legend(loc="upper right", ncols=2)
for place, (i, label) in enumerate(shown.items()):
    ax = fig.add_subplot(grid[1, 2 * place : 2 * place + 2])
    for pattern, name in enumerate(("rows", "columns", "checkers", "blank")):
        ax.scatter(*means[i, which == pattern][:400].T, s=4, label=name)
    ax.set(xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), xlabel="$z_1$", title=f"{label}\nI(x; z) = {figures[i, 1]:.2f} nats")
    ax.set_aspect("equal")
    if place == 0:
        ax.set_ylabel("$z_2$ (posterior means)")
    if place == 1:  # the panel that has most room
        ax.legend(fontsize=8, markerscale=2, loc="lower left")

# %% [markdown]
# ELBO is at most log p(x), and a decoder that has learned p(x) reaches this bound at rate 0: a latent pays at least one
# nat of rate for every nat of reconstruction that it gains. So the decoder that sees all pixels ends with empty latents
# and the best bound of all. The fewer pixels a decoder sees, the more it takes from z: in the end all of I(x; pattern),
# and some more than that, since Gaussian latents are no exact code for four patterns.
#
# Free bits and the delta-VAE remove the reason to collapse: up to log 4 nats the rate is free, or due anyway, and the
# decoder takes what is offered. Under warm-up the latents are filled while they cost nothing. When beta reaches 1 the
# rate falls, ever more slowly, to a model whose bound is below that of the collapsed one: it is where training has got
# to, not an optimum. Each of the three costs some of the bound, for likelihood has no preference for latents: whoever
# wants z to say something must say how much.
