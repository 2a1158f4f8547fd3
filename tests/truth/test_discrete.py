"""DDPM's chain: its own steps exactly, in float64 and in float32, and the betas of the literature written anew."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.process import (
    DiscreteChain,
    chain_times,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
    zero_terminal_snr,
)

BETAS = {
    "linear": lambda: linear_betas(1000),
    "scaled linear": lambda: scaled_linear_betas(1000),
    "cosine": lambda: cosine_betas(1000),
    "zero snr": lambda: zero_terminal_snr(scaled_linear_betas(1000)),
    "few": lambda: np.array([0.1, 0.5, 0.01, 0.9]),
    "one": lambda: np.array([0.3]),
}


@eqx.filter_jit
def look(chain, t, s):
    return chain.alpha(t), chain.sigma(t), chain.conditional(t, s), chain.logsnr(t)


@pytest.mark.parametrize("x64", [True, False], ids=["float64", "float32"])
def test_steps_of_the_chain_are_its_betas(x64):
    """q(x_k | x_{k-1}) = N(sqrt(1 - beta_k), beta_k) alpha_bar = prod(1 - beta), to rounding."""
    eps = np.finfo(np.float64 if x64 else np.float32).eps
    with jax.enable_x64(x64):
        for name, make in BETAS.items():
            betas, chain = make(), DiscreteChain(make())
            size = len(betas)
            np.testing.assert_allclose(chain.betas, betas, rtol=eps)
            t = chain_times(chain)
            alpha, sigma, (a, spread), _ = look(chain, t, jnp.asarray(np.arange(size) / size))
            rounded = np.asarray(chain.betas, float)
            bar = np.cumprod(1 - betas) / (1 - betas) * (1 - rounded) if betas[-1] < 1 else np.cumprod(1 - betas)
            with np.errstate(divide="ignore"):
                lost = -np.expm1(np.cumsum(np.log1p(-betas)))
            np.testing.assert_allclose(np.asarray(spread, float) ** 2, betas, rtol=8 * eps, err_msg=name)
            np.testing.assert_allclose(a, np.sqrt(1 - rounded), rtol=50 * eps, atol=0, err_msg=name)
            np.testing.assert_allclose(np.asarray(alpha, float) ** 2, bar, rtol=100 * eps, err_msg=name)
            np.testing.assert_allclose(np.asarray(sigma, float) ** 2, lost, rtol=100 * eps, err_msg=name)


def test_kernels_over_many_steps_compose_from_the_betas():
    """sigma_{t|s}^2 from step j to k is 1 - prod_{j < i <= k} (1 - beta_i), into a last step without signal too."""
    betas = zero_terminal_snr(linear_betas(50, 0.002, 0.4))
    j, k = np.sort([np.random.default_rng(0).permutation(51)[:2] for _ in range(60)], axis=1).T
    k[:20] = 50
    j, k = j[j < k], k[j < k]
    _, _, (a, spread), _ = look(DiscreteChain(betas), jnp.asarray(k / 50), jnp.asarray(j / 50))
    kept = np.array([np.prod(1 - betas[start:stop]) for start, stop in zip(j, k, strict=True)])
    np.testing.assert_allclose(np.asarray(a) ** 2, kept, rtol=1e-12, atol=1e-30)
    np.testing.assert_allclose(np.asarray(spread) ** 2, 1 - kept, rtol=1e-11)


def test_betas_of_the_literature():
    """Ho et al. 2020; Stable Diffusion's; Nichol & Dhariwal 2021, eq. 17, each by its own words."""
    np.testing.assert_allclose(linear_betas(1000), 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999, rtol=1e-13)
    root = np.sqrt(0.00085) + (np.sqrt(0.012) - np.sqrt(0.00085)) * np.arange(1000) / 999
    np.testing.assert_allclose(scaled_linear_betas(1000), root**2, rtol=1e-13)
    bar = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    k = np.arange(1000)
    expected = np.minimum(1 - bar((k + 1) / 1000) / bar(k / 1000), 0.999)
    np.testing.assert_allclose(cosine_betas(1000), expected, rtol=1e-9)
    assert cosine_betas(1000)[-1] == 0.999


def test_zero_terminal_snr():
    """The first step stays, the last leaves nothing, and sqrt(alpha_bar) is an affine function of what it was."""
    betas = scaled_linear_betas(1000)
    changed = zero_terminal_snr(betas)
    assert changed[0] == betas[0]
    assert changed[-1] == 1
    before, after = (np.sqrt(np.cumprod(1 - b)) for b in (betas, changed))
    expected = before[0] * (before - before[-1]) / (before[0] - before[-1])
    np.testing.assert_allclose(after, expected, rtol=1e-9, atol=1e-14)
    with pytest.raises(ValueError, match=r"betas: .*two"):
        zero_terminal_snr([0.1])
    with pytest.raises(ValueError, match=r"betas: .*got 1\.5 at place 1"):
        zero_terminal_snr([0.1, 1.5, 0.2])


def test_traced_betas_are_the_same_chain_and_learn():
    """Built inside a jit: the same numbers, and the derivative of log alpha_bar_k is -1/(1 - beta_j) for j <= k."""
    betas, t = jnp.array([0.1, 0.5, 0.01, 0.9]), jnp.array([0.2, 0.5, 0.75, 0.9])
    mine = jax.jit(lambda betas, t: look(DiscreteChain(betas), t, 0.5 * t))(betas, t)
    expected = look(DiscreteChain(betas), t, 0.5 * t)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)
    slope = jax.jit(
        jax.jacrev(lambda betas: 2 * jnp.log(DiscreteChain(betas).alpha(chain_times(DiscreteChain(betas)))))
    )
    np.testing.assert_allclose(slope(betas), np.tril(np.ones((4, 4))) * -1 / (1 - np.asarray(betas)), rtol=1e-12)


def test_betas_that_move_stay_one_chain():
    """Moved as leaves of the process they are the chain of the new betas, with its gradient; the sums have none."""
    betas, new, t = jnp.array([0.1, 0.5, 0.01, 0.9]), jnp.array([0.2, 0.3, 0.05, 0.8]), jnp.array([0.2, 0.5, 0.75, 0.9])
    total = lambda chain: sum(jnp.sum(jnp.cos(x)) for x in jax.tree.leaves(look(chain, t, 0.4 * t)))
    times = lambda chain: chain.time_from_logsnr(jnp.array([3.0, 1.0, -2.0]))
    evaluate = jax.jit(lambda chain: (look(chain, t, 0.4 * t), times(chain), jax.grad(total)(chain)))
    (*found, by), (*expected, _) = (
        evaluate(chain) for chain in (eqx.tree_at(lambda c: c.betas, DiscreteChain(betas), new), DiscreteChain(new))
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    rebuilt = jax.jit(jax.grad(lambda betas: total(DiscreteChain(betas))))(new)
    np.testing.assert_allclose(by.betas, rebuilt, rtol=1e-9)
    assert np.all(np.asarray(rebuilt) != 0)
    for leaf in (by.high, by.low, by.summed):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.1, -0.5, 0.2], r"betas: .*got -0\.5 at place 1"),
        ([0.1, 1.0, 0.2], r"betas: .*got 1\.0 at place 1"),
        ([0.1, 0.2, 1.5], r"betas: .*got 1\.5 at place 2"),
        ([0.0, 0.2], r"betas: .*got 0\.0 at place 0"),
        ([0.1, float("nan")], r"betas: .*got nan at place 1"),
        ([], r"betas: .*shape \(0,\)"),
        ([[0.1]], r"betas: .*shape \(1, 1\)"),
    ],
)
def test_bad_betas_are_refused(betas, message):
    with pytest.raises(ValueError, match=message):
        DiscreteChain(betas)


@pytest.mark.parametrize("make", [linear_betas, scaled_linear_betas])
def test_bad_ends_of_betas_are_refused(make):
    for value in (0.0, -0.1, 1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"start: must lie in \(0, 1\), got {value}"):
            make(10, value)
        with pytest.raises(ValueError, match=rf"stop: must lie in \(0, 1\), got {value}"):
            make(10, 0.1, value)
