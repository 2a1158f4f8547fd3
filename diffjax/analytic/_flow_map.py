"""The exact flow map of a known distribution: what every few-step model should learn.

    Gaussian     in the eigenbasis, with v = alpha^2 w + sigma^2:
                 X = alpha_s m + sqrt(v_s/v_t) (xt - alpha_t m)
                 A = m + gain (xt - alpha_t m),
                 gain = w (alpha_s sigma_t + alpha_t sigma_s)/(sqrt(v_t v_s) sigma_t + v_t sigma_s)
    others       the flow solved on the circle: z = xt/sqrt(alpha^2 + sigma^2) is the cosine schedule's state at phi,
                 dz/dphi = cos(phi) eps_hat - sin(phi) x0_hat,   eps_hat = -sin(phi) score
    in 1-D       X = F_s^-1(F_t(xt)), with F_t the distribution function of p_t: an answer of another kind

Nothing is divided by sigma, so that the solve is regular at phi = 0; its steps are uniform in asinh(phi/0.1), for
the flow of sharp modes turns fastest near the data. Source: Song et al. 2021, eq. 13.
"""

from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax._arrays import as_samples, check_time, expand
from diffjax._numbers import checked_numbers
from diffjax._typing import Sample, Time
from diffjax.analytic._base import AbstractDistribution
from diffjax.analytic._empirical import Empirical
from diffjax.analytic._gaussian import Gaussian, gaussian_average, gaussian_flow
from diffjax.analytic._mixture import GaussianMixture
from diffjax.process import AbstractFlowMap, AbstractGaussianProcess, Circle, average
from diffjax.process._flow_map import Known
from diffjax.process._vp import Cosine

_BEND = 0.1  # of asinh(phi/_BEND), in which the steps are uniform


@checked_numbers
class ExactFlowMap(AbstractFlowMap):
    """`F(xt [b, *d], t, s) -> A [b, *d]` of a known distribution; made by `exact_flow_map`. It knows every pair, and
    `move` goes both ways, also to s > t."""

    distribution: AbstractDistribution
    process: AbstractGaussianProcess
    steps: int = eqx.field(static=True)

    knows: ClassVar[Known] = "any"

    def _average(self, xt: Sample, t: Time, s: Time) -> Sample:
        if isinstance(self.distribution, Gaussian):
            return gaussian_average(self.distribution, self.process, xt, t, s)
        apart = jnp.asarray(s) < jnp.asarray(t)
        before = jnp.where(apart, s, jnp.where(jnp.asarray(t) > 0.5, 0.0, 1.0))  # any other time, where s = t
        over = average(self.process, xt, t, before, self.move(xt, t, before))
        return jnp.where(expand(apart, xt), over, self.distribution.denoise(self.process, xt, t))

    def move(self, xt: Sample, t: Time, s: Time) -> Sample:
        """The flow from xt [b, *d] at t to s, [b, *d]; t and s are [] or [b], in any order."""
        xt = as_samples("xt", xt)
        check_time(t, xt)
        check_time(s, xt, "s")
        if isinstance(self.distribution, Gaussian):
            return gaussian_flow(self.distribution, self.process, xt, t, s)
        circle = Circle()
        z = xt / expand(circle.scale(self.process, t), xt)
        start, end = (jnp.broadcast_to(circle.clock(self.process, time), z.shape[:1]) for time in (t, s))
        moved = _solve(self.distribution, z, start, end, self.steps)
        return expand(circle.scale(self.process, s), xt) * moved


@checked_numbers
def exact_flow_map(
    distribution: AbstractDistribution, process: AbstractGaussianProcess, *, steps: int = 64
) -> ExactFlowMap:
    """The exact flow map of a known distribution under a process.

    Args:
      distribution: a `Gaussian`, in closed form; a `GaussianMixture` (or another), by a solve of order 8.
      process: the forward process.
      steps: of the solve. 64 reach 2e-12 and 128 5e-15 in float64 for modes of standard deviation 0.1 among unit data;
        sharper modes take more, until twice as many change nothing.

    Returns:
      F with `F(xt, t) = E[x0 | xt]`, `F(xt, t, s)` the average denoiser and `F.move(xt, t, s)` the flow: [b, *d] for xt
      [b, *d] and times [] or [b]. Derivatives by all of these, forward and reverse, are those of the solve; at s = t
      a solved F is the denoiser, and so are its derivatives. Compile `F.move` by `eqx.filter_jit`: `jax.jit` has no
      hash for a bound method of an equinox module.

    Raises:
      ValueError: steps is below 1, or the distribution is `Empirical`.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> F = dj.exact_flow_map(dj.Gaussian(jnp.array([1.0]), 4.0), dj.Cosine())
    >>> print(F.move(jnp.array([[0.0], [1.0]]), 1.0, 0.0))  # mean + standard deviation * noise
    [[1.]
     [3.]]

    Source: Song et al. 2021, eq. 13; for Gaussians, the formulas above.
    """
    if steps < 1:
        raise ValueError(f"steps: at least 1 is needed, got {steps}")
    if isinstance(distribution, Empirical):
        raise ValueError(
            "distribution: the flow of a finite data set has no velocity at the data; take a GaussianMixture around "
            "them, got Empirical"
        )
    return ExactFlowMap(distribution=distribution, process=process, steps=steps)


def _solve(distribution, z, start, end, steps):
    """From z at angles `start` [b] to `end` [b] along the circle."""
    circle, cosine = Circle(), Cosine()
    first, last = (jnp.arcsinh(phi / _BEND) for phi in (start, end))

    def slope(r, z, args):
        first, last = args
        bent = first + r * (last - first)
        phi, speed = _BEND * jnp.sinh(bent), _BEND * jnp.cosh(bent) * (last - first)
        t = 2 / jnp.pi * phi
        x0_hat = distribution.denoise(cosine, z, t)
        eps_hat = -expand(jnp.sin(phi), z) * distribution.score(cosine, z, t)
        return expand(speed, z) * circle.velocity(phi, x0_hat, eps_hat)

    with jax.numpy_dtype_promotion("standard"):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(slope),
            diffrax.Dopri8(),
            0.0,
            1.0,
            None,
            z,
            args=(first, last),
            stepsize_controller=diffrax.StepTo(jnp.linspace(0.0, 1.0, steps + 1, dtype=first.dtype)),
            adjoint=diffrax.DirectAdjoint(),
            max_steps=steps,
        )
    ys: Any = solution.ys
    return ys[0]


def quantile_flow(mixture: GaussianMixture, process: AbstractGaussianProcess, xt: Sample, t: Time, s: Time) -> Sample:
    """The flow of a mixture in one dimension, X = F_s^-1(F_t(xt)), by distribution functions: no solve in time.

    A flow in one dimension keeps the order of its points. Exact to rounding where F_t is neither 0 nor 1 to rounding:
    for a check of `exact_flow_map` in float64, within some 6 standard deviations.

    Args:
      mixture: of features [1].
      process: the forward process.
      xt: [b, 1].
      t: [] or [b].
      s: [] or [b], in any order.

    Returns:
      xs, [b, 1].

    Raises:
      ValueError: the data have more than one feature.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax.analytic import quantile_flow
    >>> data = dj.GaussianMixture(jnp.array([[1.0]]), 4.0)  # of one component: mean + 2 noise
    >>> print(quantile_flow(data, dj.Cosine(), jnp.array([[0.5]]), 1.0, 0.0).round(3))
    [[2.]]
    """
    xt = as_samples("xt", xt)
    check_time(t, xt)
    check_time(s, xt, "s")
    if xt.shape[1:] != (1,) or mixture.components.mean.shape[1:] != (1,):
        raise ValueError(
            f"mixture: one feature is needed, of shape [1], got {mixture.components.mean.shape[1:]} and xt {xt.shape}"
        )
    means, variances = mixture.components.mean[:, 0], mixture.components.variances[:, 0]
    weights = jnp.exp(mixture.log_weights)

    def cdf(x, t):
        alpha, sigma = (jnp.broadcast_to(of(t), x.shape)[:, None] for of in (process.alpha, process.sigma))
        each = (x[:, None] - alpha * means) / jnp.sqrt(alpha**2 * variances + sigma**2)
        return jnp.sum(weights * jax.scipy.stats.norm.cdf(each), axis=1)

    x = xt[:, 0]
    level = cdf(x, t)
    alpha, sigma = (jnp.broadcast_to(of(s), x.shape)[:, None] for of in (process.alpha, process.sigma))
    reach = 40 * jnp.sqrt(alpha**2 * variances + sigma**2)
    low, high = jnp.min(alpha * means - reach, axis=1), jnp.max(alpha * means + reach, axis=1)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        below = cdf(middle, s) < level
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, jnp.finfo(x.dtype).nmant + 8, halve, (low, high))
    return (0.5 * (low + high))[:, None]
