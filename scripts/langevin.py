"""Langevin methods where the answer is known: a Bayesian posterior, and a mixture whose modes lie far apart.

    python scripts/langevin.py [--out runs/langevin] [--chains 1000] [--steps 400]

MALA and HMC need the extra `mcmc`: `pip install ".[mcmc]"` in diffjax's folder.

First the posterior of a logistic regression (breast cancer, four features), known by importance sampling. Each method's
error of the mean, in posterior standard deviations, and its sd over the true one (`posterior.csv`):

                     mean error         sd ratio           predicted: the bias the method is known for
    ULA              0.0945 +- 0.0041   1.1526 +- 0.0011   1.1547   tau = 1/2: 1/sqrt(1 - tau/2)
    SGLD             0.1513 +- 0.0100   1.2528 +- 0.0027   1.2345   batches of 57 of 569, tau = 0.1
    SGLD, decaying   0.0363 +- 0.0191   1.0437 +- 0.0050   1.0433   tau = 0.1 (1 + k)^(-1/3): falls with the steps
    MALA             0.0053 +- 0.0037   1.0007 +- 0.0011   1         tau = 1/2
    HMC              0.0036 +- 0.0026   1.0013 +- 0.0009   1

Then three far modes, of which plain Langevin misses two or gets the weights wrong, and annealed Langevin, at the same
cost, does neither (`mixture.png`):

    weights                           0.150, 0.600, 0.250
    plain Langevin from N(0, 1/4)     0.980, 0.018, 0.002
    plain Langevin from N(0, 100)     0.475, 0.306, 0.219
    annealed Langevin from N(0, 100)  0.161, 0.576, 0.264   0.1 sigma^2 a step; what is left is the steps' own bias

About 80 s of computing on one CPU core.
"""

import argparse
import csv
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer

import diffjax as dj
from diffjax import samplers, viz

# --- the posterior of a logistic regression ---

FEATURES = ("mean radius", "mean texture", "mean smoothness", "mean symmetry")
PRIOR_VARIANCE = 4.0


def problem():
    """Standardised features beside ones, [N, 5], and labels +-1, [N]: is the tumour benign? float64 NumPy."""
    bunch = load_breast_cancer()
    columns = [list(bunch.feature_names).index(name) for name in FEATURES]
    features = (bunch.data[:, columns] - bunch.data[:, columns].mean(0)) / bunch.data[:, columns].std(0)
    return np.column_stack([np.ones(len(features)), features]), 2.0 * bunch.target - 1


def laplace(features, labels):
    """(mode [d], curvature [d, d], covariance of one datum's gradient at the mode [d, d]), by Newton's method."""
    mode = np.zeros(features.shape[1])
    for _ in range(30):
        miss = 1 / (1 + np.exp(labels * (features @ mode)))
        gradients = (labels * miss)[:, None] * features
        curvature = features.T @ (features * (miss * (1 - miss))[:, None]) + np.eye(len(mode)) / PRIOR_VARIANCE
        mode = mode + np.linalg.solve(curvature, gradients.sum(0) - mode / PRIOR_VARIANCE)
    return mode, curvature, np.cov(gradients.T, bias=True)


def reference(features, labels, mode, root, draws):
    """Mean [d] and covariance [d, d] of u, where x = mode + root u, and the effective number of draws behind them.

    By importance sampling; the proposal for u is Student's t with 8 degrees of freedom.
    """
    rng, d, freedom = np.random.default_rng(0), len(mode), 8
    u = rng.normal(size=(draws, d)) * np.sqrt(freedom / rng.chisquare(freedom, draws))[:, None]
    x = mode + u @ root.T
    log_weights = 0.5 * (freedom + d) * np.log1p((u**2).sum(1) / freedom) - 0.5 * (x**2).sum(1) / PRIOR_VARIANCE
    for begin in range(0, draws, 20_000):
        part = slice(begin, begin + 20_000)
        log_weights[part] -= np.logaddexp(0, -labels * (x[part] @ features.T)).sum(1)
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    mean = weights @ u
    return mean, (u - mean).T @ ((u - mean) * weights[:, None]), 1 / (weights**2).sum()


def predicted(taus, burn_in, noise):
    """The sd of u that an unadjusted chain's average shows if the posterior is N(0, 1): the bias of its steps.

    u <- (1 - tau) u + sqrt(2 tau + tau^2 noise) z, where noise is the variance of the stochastic gradient.
    """
    variance, total = 1.0, 0.0
    for k, tau in enumerate(taus):
        variance = (1 - tau) ** 2 * variance + 2 * tau + tau**2 * noise
        total += (k >= burn_in) * tau * variance
    return np.sqrt(total / sum(taus[burn_in:]))


METHODS = ("ULA", "SGLD", "SGLD, decaying", "MALA", "HMC")


def posterior_table(chains, steps, draws=400_000, methods=METHODS, batch_size=57):
    """Each method against the reference: {method: (mean error, its error, sd ratio, its error, predicted sd ratio)}.

    Everything is in the coordinates u where Laplace's approximation is N(0, 1) (preconditioning: one step size suits
    all directions). The mean error, in posterior sds, is the direction's that stands out most from its own error; the
    sd ratio is the root of the mean variance ratio over all directions. Chains start from N(0, 1).
    """
    features, labels = problem()
    mode, curvature, spread = laplace(features, labels)
    root = np.linalg.cholesky(np.linalg.inv(curvature))
    mean, covariance, effective = reference(features, labels, mode, root, draws)
    data = tuple(jnp.asarray(array) for array in (features @ root, features @ mode, labels))
    whiten = jnp.asarray(np.linalg.inv(np.linalg.cholesky(covariance)).T)
    centre, shift, stretch = (jnp.asarray(array) for array in (mean, mode, root.T))

    def log_prior(u):
        return -0.5 * jnp.sum((shift + u @ stretch) ** 2) / PRIOR_VARIANCE

    def log_likelihood(u, data):
        slopes, offsets, labels = data
        return jax.nn.log_sigmoid(labels * (slopes @ u + offsets))

    def statistic(u):
        white = (u - centre) @ whiten
        return white, white**2

    log_density = samplers.log_posterior(log_prior, log_likelihood, data)
    score = samplers.density_score(log_density)
    stochastic = samplers.minibatch_score(log_prior, log_likelihood, len(labels))
    noise = len(labels) ** 2 / batch_size * np.trace(root.T @ spread @ root) / len(mode)
    key, start_key = jax.random.split(jax.random.key(0))
    start = jax.random.normal(start_key, (chains, len(mode)))
    burn_in = steps // 4
    kept = {"steps": steps, "average": statistic, "burn_in": burn_in}
    decay = np.asarray(samplers.polynomial_decay(steps, a=0.1))
    leapfrog = {"step_size": 0.4, "integration_steps": 4}

    def sgld(step_size):
        return samplers.sgld(key, stochastic, start, data, batch_size=batch_size, step_size=step_size, **kept)

    long, short = np.full(steps, 0.5), np.full(steps, 0.1)
    runs = {  # the run, and the sd ratio expected of it
        "ULA": (lambda: samplers.langevin(key, score, start, step_size=long, **kept), predicted(long, burn_in, 0)),
        "SGLD": (lambda: sgld(short), predicted(short, burn_in, noise)),
        "SGLD, decaying": (lambda: sgld(decay), predicted(decay, burn_in, noise)),
        "MALA": (lambda: samplers.mala(key, log_density, start, step_size=long, **kept), 1.0),
        "HMC": (lambda: samplers.hmc(key, log_density, start, **leapfrog, **kept), 1.0),
    }
    table = {}
    for name in methods:
        run, theory = runs[name]
        white, square = (np.asarray(part, np.float64) for part in run().average)
        off, error = white.mean(0), np.sqrt(white.var(0) / chains + 1 / effective)
        worst = np.argmax(np.abs(off / error))
        ratio = np.sqrt((square.mean(0) - off**2).mean())
        ratio_error = np.sqrt(square.mean(1).var() / chains + 2 / effective / len(mode)) / (2 * ratio)
        table[name] = tuple(float(value) for value in (abs(off[worst]), error[worst], ratio, ratio_error, theory))
    return table


# --- a mixture whose modes lie far apart ---


def mixture():
    """Three modes of unequal weight and width, with nothing in between, [b, 2]."""
    return dj.GaussianMixture(
        jnp.array([[-2.5, -2.0], [4.0, -2.0], [0.5, 4.5]]), jnp.array([0.5, 0.3, 0.2]), jnp.array([0.15, 0.6, 0.25])
    )


def sample_all(n, levels, steps_per_level):
    """Plain Langevin from two kinds of noise, and annealed Langevin, at the same cost: {title: points [n, 2]}."""
    process, data = dj.EDM(sigma_min=0.05, sigma_max=10.0), mixture()
    ts = np.linspace(1, 0, levels)
    start_key, key = jax.random.split(jax.random.key(1))
    start = dj.prior(start_key, process, (n, 2))
    score = samplers.density_score(lambda x: data.log_prob(process, x, ts[-1]))

    def plain(start):
        return samplers.langevin(key, score, start, steps=levels * steps_per_level, step_size=0.02).x

    annealed = samplers.annealed_langevin(
        key, process, dj.exact_denoiser(data, process), start, ts, steps_per_level=steps_per_level, step_size=0.1
    )
    return {
        "plain Langevin from N(0, 1/4)": np.asarray(plain(0.05 * start)),
        "plain Langevin from N(0, 100)": np.asarray(plain(start)),
        "annealed Langevin from N(0, 100)": np.asarray(annealed),
    }


def shares(x):
    """The share of points nearest to each mode, [3]."""
    means = np.asarray(mixture().components.mean)
    nearest = ((x[:, None] - means) ** 2).sum(-1).argmin(1)
    return np.bincount(nearest, minlength=len(means)) / len(x)


def draw(path, panels):
    """Points over the contours of the mixture's density, panel by panel, with the share of each mode beside it."""
    figure = Figure(figsize=(9, 8.6), layout="constrained")
    extent = (-8.0, 8.0, -7.0, 8.0)
    x, y = np.meshgrid(np.linspace(*extent[:2], 161), np.linspace(*extent[2:], 151))
    plane = jnp.asarray(np.stack([x.ravel(), y.ravel()], 1))
    height = np.exp(np.asarray(mixture().log_prob(dj.EDM(), plane, 0.0))).reshape(x.shape)
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, (title, points) in zip(grid.flat, panels.items(), strict=True):
        viz.scatter(points[:2000], size=3.0, color="C0", ax=axes)
        axes.contour(x, y, height, levels=np.geomspace(1e-3, height.max() / 1.5, 5), colors="black", linewidths=0.6)
        for mean, share in zip(np.asarray(mixture().components.mean), shares(points), strict=True):
            axes.annotate(f"{share:.0%}", mean + np.array([1.4, 1.6]), fontsize=13, color="C3", weight="bold")
        axes.set(xlim=extent[:2], ylim=extent[2:], title=title)
    figure.savefig(path, dpi=110)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/langevin"))
    parser.add_argument("--chains", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=400, help="of each chain of the posterior")
    parser.add_argument("--points", type=int, default=10_000, help="of the mixture")
    parser.add_argument("--levels", type=int, default=40)
    parser.add_argument("--steps-per-level", type=int, default=20)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)

    table = posterior_table(options.chains, options.steps)
    print("method           mean error / sd     sd ratio            predicted")
    for name, (shift, shift_error, ratio, ratio_error, theory) in table.items():
        print(f"{name:15}  {shift:.4f} +- {shift_error:.4f}   {ratio:.4f} +- {ratio_error:.4f}   {theory:.4f}")
    with open(options.out / "posterior.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "mean error", "its error", "sd ratio", "its error", "predicted sd ratio"])
        writer.writerows([name, *row] for name, row in table.items())

    data = np.asarray(mixture().sample(jax.random.key(2), options.points))
    panels = {"the data": data, **sample_all(options.points, options.levels, options.steps_per_level)}
    draw(options.out / "mixture.png", panels)
    found = {title: shares(points) for title, points in panels.items()}
    for name, share in found.items():
        print(f"{name:32} shares of the modes: " + ", ".join(f"{part:.3f}" for part in share))
    return table, found


if __name__ == "__main__":
    main()
