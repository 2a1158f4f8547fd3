"""Linear SDEs with matrices: several channels a feature, such as position and velocity, that drive one another.

    dx = F(t) x dt + L(t) dw,    x [b, m, *d]: F and L are m x m and act on axis 1, the same for each of the features *d

    x_t | x_s ~ N(Phi x_s, Sigma):   dPhi/dt = F Phi,   dSigma/dt = F Sigma + Sigma F' + L L',   Phi = I, Sigma = 0 at s

    process.moments(t): (Phi, Sigma) --> process.kernel(t): (Phi, C), C C' = covariance --> linear_perturb, linear_prior

`moments` integrates the differential equation in general; `LinearSDE` has Van Loan's matrix exponential, and
`CriticallyDamped` a closed form.

Source: Sarkka & Solin 2019 (Applied Stochastic Differential Equations), chapter 6 (the moments); Van Loan 1978 (the
exponential).
"""

import abc
from functools import partial

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float

from diffjax._arrays import (
    as_samples,
    check,
    check_key,
    check_shape,
    check_time,
    default_index,
    is_concrete,
    nan_unless,
    normal_like,
    sample_keys,
    values_at_once,
)
from diffjax._numbers import as_leaf, as_scalar, checked_numbers
from diffjax._typing import Index, Key, Sample, Scalar, Time
from diffjax.process._base import MAX_LOGSNR, AbstractProcess, apply_matrix, matrix_noise
from diffjax.process._vp import AbstractLinearBeta

Matrices = Float[Array, "*b m m"]
_DOUBLINGS = 24
"""The longest step is 2^24 times the short one, on which |F| dt <= 1/2."""


class AbstractLinearProcess(AbstractProcess):
    """dx = F(t) x dt + L(t) dw on x [b, m, *d]. A class defines the two matrices; the rest is derived.

    >>> import jax.numpy as jnp
    >>> from diffjax.process import AbstractLinearProcess
    >>> class Spring(AbstractLinearProcess):
    ...     def drift_matrix(self, t):
    ...         return jnp.array([[0.0, 1.0], [-1.0, 0.0]]) * (1 + t)
    ...     def noise_matrix(self, t):
    ...         return jnp.array([[0.0, 0.0], [0.0, 0.5]])
    >>> phi, sigma = Spring().moments(1.0)
    >>> round(float(phi[0, 0]), 4)  # cos(3/2)
    0.0707
    """

    @abc.abstractmethod
    def drift_matrix(self, t: Scalar) -> Float[Array, "m m"]:
        """F(t), [m, m], at one time, a scalar."""

    @abc.abstractmethod
    def noise_matrix(self, t: Scalar) -> Float[Array, "m m"]:
        """L(t), [m, m], at one time, a scalar. It need not be invertible."""

    def drift(self, x: Sample, t: Time) -> Sample:
        """F(t) x, shape [b, m, *d]."""
        return apply_matrix(_each(self.drift_matrix, t), x).astype(x.dtype)

    def diffusion(self, x: Sample, t: Time) -> Matrices:
        """L(t), [m, m], or [b, m, m] for t [b]: it acts on axis 1 of x."""
        return _each(self.noise_matrix, t)

    def noise_operator(self, x: Sample, t: Time) -> lx.AbstractLinearOperator:
        """L(t) as the operator on axis 1 of increments [b, m, *d]."""
        return matrix_noise(self.diffusion(x, t), as_samples("x", x))

    def noise_divergence(self, x: Sample, t: Time) -> Sample:
        """Zero, [b, m, *d]: L depends on the time alone."""
        return jnp.zeros_like(as_samples("x", x))

    def interval(self) -> tuple[Scalar, Scalar]:
        """[1e-3, 1]: earlier, a channel that noise reaches through another one has a variance of t^3 < 1e-9."""
        return 1e-3, 1.0

    def moments(self, t: Time, s: Time = 0.0) -> tuple[Matrices, Matrices]:
        """(Phi, Sigma) of x_t | x_s ~ N(Phi x_s, Sigma), s <= t: [m, m] for times [], [b, m, m] where one is [b].

        In general by integrating the equations above with Dopri8 at a relative tolerance of 1e-10 (float64) or 1e-6
        (float32), differentiable in both modes; NaN where that takes more than 256 steps.
        """

        def solve(t, s):
            dtype = jnp.result_type(t, float) if t.dtype == jnp.float64 else jnp.float32
            identity = jnp.eye(self.drift_matrix(t).shape[0], dtype=dtype)
            tolerance = 1e-10 if dtype == jnp.float64 else 1e-6

            def field(u, state, args):
                phi, sigma = state
                f, l = self.drift_matrix(s + u * (t - s)), self.noise_matrix(s + u * (t - s))
                rates = f @ phi, f @ sigma + sigma @ f.T + l @ l.T
                return jax.tree.map(lambda rate: ((t - s) * rate).astype(dtype), rates)

            # u runs from 0 at s to 1 at t; the first step is the whole, so that Sigma has its digits for small t too.
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                diffrax.Dopri8(),
                t0=0.0,
                t1=1.0,
                dt0=1.0,
                y0=(identity, jnp.zeros_like(identity)),
                stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=1e-3 * tolerance),
                adjoint=diffrax.DirectAdjoint(),
                max_steps=256,
                throw=False,
            )
            ok = solution.result == diffrax.RESULTS.successful
            phi, sigma = jax.tree.map(lambda y: y[-1], solution.ys)
            return nan_unless(ok, jnp.stack([phi, sigma]))

        t, s = (jnp.asarray(time, jnp.result_type(float) if isinstance(time, float | int) else None) for time in (t, s))
        both = jnp.vectorize(solve, signature="(),()->(k,m,m)")(t, s)
        return both[..., 0, :, :], both[..., 1, :, :]

    def kernel(self, t: Time) -> tuple[Matrices, Matrices]:
        """(Phi, C), each [m, m] or [b, m, m]: x_t | x_0 ~ N(Phi x_0, C C'), C lower triangular, for t > 0.

        In general the Cholesky factor of Sigma. For `CriticallyDamped`, x_0 has velocity zero, and C has the variance
        with which velocities start. At t = 0, where nothing is random, C is NaN in general.
        """
        phi, sigma = self.moments(t)
        return phi, jnp.linalg.cholesky(sigma)


def _each(function, *times):
    """A function of scalar times, at times of shape [] or [b]."""
    times = [jnp.asarray(t) for t in times]
    return jnp.vectorize(function, signature=",".join(["()"] * len(times)) + "->(m,m)")(*times)


def linear_perturb(process: AbstractLinearProcess, x0: Sample, eps: Sample, t: Time) -> Sample:
    """Noisy states at t: x_t = Phi x0 + C eps with (Phi, C) = process.kernel(t).

    Args:
      process: the forward process.
      x0: states [b, m, *d] at t = 0.
      eps: standard normal noise [b, m, *d].
      t: [] or [b].

    Returns:
      x_t, [b, m, *d].

    Raises:
      ValueError: a shape does not fit, or a number is not floating-point.
    """
    x0 = as_samples("x0", x0)
    eps = as_samples("eps", eps, x0.shape)
    check_time(t, x0)
    phi, c = process.kernel(t)
    return (apply_matrix(phi, x0) + apply_matrix(c, eps)).astype(x0.dtype)


@checked_numbers
def linear_prior(
    key: Key, process: AbstractLinearProcess, shape: tuple[int, ...], *, index: Index | None = None
) -> Float[Array, "b m *d"]:
    """States to start sampling from: N(0, C C') at t = 1, with C of `process.kernel(1)`.

    Args:
      key: sample i is drawn from `fold_in(key, index_i)`, and depends on its global index alone.
      process: the forward process.
      shape: (b, m, *d).
      index: global indices [b] of the samples; 0 .. b - 1 by default.

    Returns:
      x at t = 1, [b, m, *d].
    """
    check_key(key)
    check_shape(shape, 2)
    keys = sample_keys(key, default_index(shape[0], index))
    eps = normal_like(keys, jnp.empty(shape, jnp.result_type(float)))
    return apply_matrix(process.kernel(1.0)[1].astype(eps.dtype), eps)


class LinearSDE(AbstractLinearBeta, AbstractLinearProcess):
    """dx = beta(t) F x dt + sqrt(beta(t)) L dw: constant matrices, run through at a rate that is linear in t.

    Attributes:
      matrix: F, [m, m].
      noise: L, [m, m]; it need not be invertible, as long as the noise reaches every channel.
      beta_min: the rate at t = 0; positive.
      beta_max: the rate at t = 1; positive.

    Raises:
      ValueError: the matrices are not square and of one size, a rate is not positive, or no noise reaches some
        combination of the channels: [L, F L, .., F^(m - 1) L] has a rank below m (Kalman's condition, for which the
        units of the channels and the rate do not matter), and no covariance is positive definite.
    """

    matrix: Float[Array, "m m"] = eqx.field(converter=partial(as_leaf, "matrix"))
    noise: Float[Array, "m m"] = eqx.field(converter=partial(as_leaf, "noise"))
    beta_min: Scalar = eqx.field(converter=partial(as_scalar, "beta_min"), default=1.0)
    beta_max: Scalar = eqx.field(converter=partial(as_scalar, "beta_max"), default=1.0)

    @values_at_once
    def __check_init__(self):
        m = self.matrix.shape[-1] if self.matrix.ndim else 0
        for name in ("matrix", "noise"):
            shape = getattr(self, name).shape
            if shape != (m, m) or not m:
                raise ValueError(f"{name}: a square matrix of shape ({m}, {m}) is needed, got {shape}")
        check_rates(self)
        if is_concrete((self.matrix, self.noise)):
            rank = _reached(self.matrix, self.noise)
            check(
                rank == m,
                "noise: must reach every channel, by itself or through the matrix, or no covariance is positive "
                f"definite; got a rank of {rank} for {m} channels",
            )

    def drift_matrix(self, t: Scalar) -> Float[Array, "m m"]:
        return jnp.asarray(self.beta(t) * self.matrix)

    def noise_matrix(self, t: Scalar) -> Float[Array, "m m"]:
        return jnp.asarray(jnp.sqrt(self.beta(t)) * self.noise)

    def moments(self, t: Time, s: Time = 0.0) -> tuple[Matrices, Matrices]:
        tau, f, l = jnp.asarray(self.integrated_beta(t, s)), self.matrix, self.noise
        both = jnp.vectorize(lambda u: jnp.stack(_van_loan(f, l @ l.T, u)), signature="()->(k,m,m)")(tau)
        return both[..., 0, :, :], both[..., 1, :, :]


def _reached(f, l):
    """The rank of [L, F L, .., F^(m - 1) L], each row of it scaled to length one."""
    precision, (f, l) = jnp.finfo(f.dtype).eps, (np.asarray(matrix, np.float64) for matrix in (f, l))
    blocks = [l]
    for _ in range(len(f) - 1):
        blocks.append(f @ blocks[-1] / max(np.abs(f).max(), np.finfo(float).tiny))
    rows = np.concatenate(blocks, axis=1)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.linalg.matrix_rank(rows / np.where(lengths > 0, lengths, 1), rtol=len(f) * precision)


@jax.jit
def _van_loan(
    f: Float[Array, "m m"], q: Float[Array, "m m"], tau: Float[Array, ""]
) -> tuple[Float[Array, "m m"], Float[Array, "m m"]]:
    """(Phi, Sigma) after the time tau, a scalar: the exponential of a short step, then doubled as often as needed.

        exp([-F  Q; 0  F'] h) = [.  Phi^-1 Sigma; 0  Phi'],  Q = L L',   Sigma(2h) = Sigma(h) + Phi(h) Sigma(h) Phi(h)'

    On a long step the exponential's blocks grow as exp(|F| tau), which costs every digit of float32.
    """
    m, norm = f.shape[0], jnp.max(jnp.sum(jnp.abs(f), axis=1)) * jax.lax.stop_gradient(tau)
    halvings = jax.lax.stop_gradient(jnp.ceil(jnp.clip(jnp.log2(2 * norm), 0, _DOUBLINGS)))
    blocks = jnp.block([[-f, q], [jnp.zeros_like(f), f.T]])
    blocks = jax.scipy.linalg.expm(blocks * (tau / 2**halvings))
    phi = blocks[m:, m:].T

    def double(n, pair):
        phi, sigma = pair
        doubled = phi @ phi, sigma + phi @ sigma @ phi.T
        return jax.tree.map(lambda new, old: jnp.where(n < halvings, new, old), doubled, pair)

    return jax.lax.fori_loop(0, _DOUBLINGS, double, (phi, phi @ blocks[:m, m:]))


# --- critically damped Langevin: closed forms ---
#
# With M = mass, w = v/sqrt(M) and the clock s = B(t)/sqrt(M), B the integral of beta, there is one equation without
# parameters,
#
#     dx = w ds,   dw = (-x - 2 w) ds + 2 dW,    Phi = exp(-s) [[1 + s, s], [-s, 1 - s]],   Sigma = I - Phi Phi'
#
# for N(0, I) is stationary. In z = 2 s, free of cancellation,
#
#     Sigma_xx = 1 - e^-z (1 + z + z^2/2) = P(3, z),   Sigma_xw = e^-z z^2/2,   Sigma_ww = (1 - e^-z) + e^-z (z - z^2/2)
#
# P(3, z) the regularised incomplete gamma function. Given x_0 alone, the velocity's start adds gamma c c' with
# c = Phi_{.w}, and the determinant is det Sigma + gamma (Sigma_ww c_x^2 - 2 Sigma_xw c_x c_w + Sigma_xx c_w^2).
# Source: Dockhorn et al. 2022, section 3 and appendix B.1 (the moments, in other variables).


class CriticallyDamped(AbstractLinearBeta, AbstractLinearProcess):
    """Critically damped Langevin on states u = (x, v) [b, 2, *d]: noise drives a velocity, and the velocity the data.

        dx = beta M^-1 v dt,    dv = -beta x dt - Gamma beta M^-1 v dt + sqrt(2 Gamma beta) dw,    Gamma^2 = 4 M

    beta is linear in t, the velocity starts as N(0, gamma M I), and N(0, I) x N(0, M I) is stationary.

    Attributes:
      beta_min: beta at t = 0, per unit of time; positive. The data are forgotten as (1 + s) exp(-s) with
        s = B(1)/sqrt(mass): 3e-3 for the defaults, which are the paper's.
      beta_max: beta at t = 1; positive.
      mass: M, the velocity's stationary variance; positive.
      gamma: velocities start with variance gamma M; positive.

    Raises:
      ValueError: one of them is not positive and finite.

    Source: Dockhorn et al. 2022 (Score-based generative modeling with critically-damped Langevin diffusion), eq. 5.
    """

    beta_min: Scalar = eqx.field(converter=partial(as_scalar, "beta_min"), default=4.0)
    beta_max: Scalar = eqx.field(converter=partial(as_scalar, "beta_max"), default=4.0)
    mass: Scalar = eqx.field(converter=partial(as_scalar, "mass"), default=0.25)
    gamma: Scalar = eqx.field(converter=partial(as_scalar, "gamma"), default=0.04)

    @values_at_once
    def __check_init__(self):
        check_rates(self)
        for name in ("mass", "gamma"):
            value = getattr(self, name)
            check((value > 0) & (value < jnp.inf), f"{name}: must be positive and finite, got {value}")

    def drift_matrix(self, t: Scalar) -> Float[Array, "m m"]:
        one = jnp.ones_like(self.mass)
        return jnp.asarray(self.beta(t)) * _matrix(0 * one, 1 / self.mass, -one, -2 / jnp.sqrt(self.mass))

    def noise_matrix(self, t: Scalar) -> Float[Array, "m m"]:
        zero = jnp.zeros_like(self.mass)
        return jnp.sqrt(self.beta(t)) * _matrix(zero, zero, zero, 2 * self.mass**0.25)

    def moments(self, t: Time, s: Time = 0.0) -> tuple[Matrices, Matrices]:
        (xx, xw, wx, ww), (s_xx, s_xw, s_ww) = self._scaled(t, s)
        root = jnp.sqrt(self.mass)
        phi = _matrix(xx, xw / root, wx * root, ww)
        return phi, _matrix(s_xx, root * s_xw, root * s_xw, self.mass * s_ww)

    def kernel(self, t: Time) -> tuple[Matrices, Matrices]:
        (_, c_x, _, c_w), (s_xx, s_xw, s_ww) = self._scaled(t)
        gamma, root = self.gamma, jnp.sqrt(self.mass)
        xx, xw = s_xx + gamma * c_x**2, s_xw + gamma * c_x * c_w
        determinant = s_xx * s_ww - s_xw**2 + gamma * (s_ww * c_x**2 - 2 * s_xw * c_x * c_w + s_xx * c_w**2)
        std_x = jnp.sqrt(xx)
        chol = _matrix(std_x, jnp.zeros_like(xx), root * xw / std_x, root * jnp.sqrt(determinant / xx))
        return self.moments(t)[0], chol

    def interval(self) -> tuple[Scalar, Scalar]:
        """From where the data's logsnr is 20, as for a Gaussian process, to 1.

        C_xx^2 = gamma s^2 + 4 s^3/3 = e^-20, by the larger of the two terms; there the velocity has the noise
        C_vv = sqrt(4 s M/3), 2 % of its scale at the defaults.
        """
        noise = jnp.exp(-MAX_LOGSNR)
        clock = jnp.minimum(jnp.sqrt(noise / self.gamma), (0.75 * noise) ** (1 / 3))
        t_min = self.time_from_integrated_beta(clock * jnp.sqrt(self.mass))
        return jnp.minimum(t_min, 1.0), jnp.ones_like(t_min)

    def _scaled(self, t, s: Time = 0.0):
        """The clock s, Phi's four entries and Sigma's three, for w = v/sqrt(M): dimensionless."""
        clock = jnp.asarray(self.integrated_beta(t, s)) / jnp.sqrt(self.mass)
        decay, z = jnp.exp(-clock), 2 * clock
        phi = decay * (1 + clock), decay * clock, -decay * clock, decay * (1 - clock)
        e = jnp.exp(-z)
        return phi, (_gamma3(z), 0.5 * e * z**2, -jnp.expm1(-z) + e * (z - 0.5 * z**2))


def _matrix(xx, xv, vx, vv):
    """[..., 2, 2] of its four entries."""
    entries = jnp.broadcast_arrays(*(jnp.asarray(entry) for entry in (xx, xv, vx, vv)))
    return jnp.stack([jnp.stack(entries[:2], -1), jnp.stack(entries[2:], -1)], -2)


def _gamma3(z):
    """P(3, z) = 1 - e^-z (1 + z + z^2/2), about z^3/6 for small z; by its series below 2, where that would cancel."""
    small, series = jnp.minimum(z, 2.0), jnp.ones_like(z)
    for n in range(22, 3, -1):
        series = 1 + small / n * series
    large = -jnp.expm1(-z) - jnp.exp(-z) * (z + 0.5 * z**2)
    return jnp.where(z < 2, jnp.exp(-small) * small**3 / 6 * series, large)


def check_rates(process: AbstractLinearBeta) -> None:
    """Raises `ValueError` where beta_min or beta_max is not positive and finite, naming it and its value."""
    for name in ("beta_min", "beta_max"):
        value = getattr(process, name)
        check((value > 0) & (value < jnp.inf), f"{name}: must be positive and finite, got {value}")
