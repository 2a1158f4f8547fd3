"""The figures of `diffjax evaluate` computed again in NumPy, in float64."""

import numpy as np


def sliced(theta, x, y):
    """The sliced Wasserstein-2 distance along directions theta [k, d]; every row is repeated to a common number."""
    theta, x, y = (np.asarray(z, np.float64) for z in (theta, x, y))
    common = np.lcm(len(x), len(y))
    along_x, along_y = (np.repeat(np.sort(z @ theta.T, axis=0), common // len(z), axis=0) for z in (x, y))
    return np.sqrt(np.mean((along_x - along_y) ** 2))


def frechet(x, y):
    """|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) of rows; the root's trace is that of its eigenvalues."""
    x, y = (np.asarray(z, np.float64).reshape(len(z), -1) for z in (x, y))
    s_x, s_y = np.cov(x.T), np.cov(y.T)
    cross = np.sum(np.sqrt(np.maximum(np.linalg.eigvals(s_x @ s_y).real, 0)))
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(s_x + s_y) - 2 * cross


def nearest(x, reference):
    """The distance of each row to the nearest of a reference, [n], from all differences."""
    x, reference = (np.asarray(z, np.float64).reshape(len(z), -1) for z in (x, reference))
    return np.array([np.sqrt(np.min(np.sum((reference - row) ** 2, axis=1))) for row in x])


def shares_in_balls(x, reference, k=3):
    """(precision, recall): shares of rows in a ball of the other set, as far as an item's k-th nearest of its own."""
    x, reference = (np.asarray(z, np.float64).reshape(len(z), -1) for z in (x, reference))
    lengths = lambda a, b: np.linalg.norm(a[:, None] - b, axis=2)
    radii = lambda a: np.sort(lengths(a, a), axis=1)[:, k]  # the nearest is the item itself
    share = lengths(x, reference) <= radii(reference), lengths(reference, x) <= radii(x)
    return tuple(np.mean(inside.any(axis=1)) for inside in share)


def ring(x):
    """The log density of eight Gaussians of standard deviation 0.1 on a ring of radius sqrt(2 (1 - 0.1^2)), [n]."""
    angles = np.arange(8) * np.pi / 4
    centres = np.sqrt(1.98) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    squares = np.sum((np.asarray(x, np.float64)[:, None] - centres) ** 2, axis=2)
    return np.log(np.mean(np.exp(-squares / 0.02) / (0.02 * np.pi), axis=1))
