"""Linear SDEs with matrices: several channels a feature, such as position and velocity, that drive one another.

    dx = F(t) x dt + L(t) dw,    x [b, m, *d]: F and L are m x m and act on axis 1, the same for each of the features *d

    x_t | x_s ~ N(Phi x_s, Sigma):   dPhi/dt = F Phi,   dSigma/dt = F Sigma + Sigma F' + L L',   Phi = I, Sigma = 0 at s

`moments` has three ways to it: a closed form where a process registers one, Van Loan's matrix exponential for
`LinearSDE`, and for any other the differential equation itself.

    process, t --> moments --> (Phi, Sigma) --> linear_kernel --> (Phi, C), C C' = covariance --> linear_perturb

Source: Sarkka & Solin 2019 (Applied Stochastic Differential Equations), chapter 6 (the moments); Van Loan 1978 (the
exponential).
"""

import abc
from functools import singledispatch
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffjax._arrays import as_scalar, as_value, check, default_index, is_concrete, normal_like, sample_keys
from diffjax._typing import Index, Key, Sample, Scalar, Time
from diffjax.process._base import AbstractProcess, interval
from diffjax.process._noise import apply_matrix, matrix_noise, noise_divergence, noise_operator
from diffjax.process._vp import integrated_beta

Matrices = Float[Array, "*b m m"]
_DOUBLINGS = 24
"""The longest step is 2^24 times the short one, on which |F| dt <= 1/2."""


class AbstractLinearProcess(AbstractProcess):
    """dx = F(t) x dt + L(t) dw on x [b, m, *d]. A member gives the two matrices; the rest is derived.

    >>> import jax.numpy as jnp
    >>> from diffjax.process import AbstractLinearProcess, moments
    >>> class Spring(AbstractLinearProcess):
    ...     def drift_matrix(self, t):
    ...         return jnp.array([[0.0, 1.0], [-1.0, 0.0]]) * (1 + t)
    ...     def noise_matrix(self, t):
    ...         return jnp.array([[0.0, 0.0], [0.0, 0.5]])
    >>> phi, sigma = moments(Spring(), 1.0)
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


def _each(function, *times):
    """A function of scalar times, at times of shape [] or [b]."""
    times = [jnp.asarray(t) for t in times]
    return jnp.vectorize(function, signature=",".join(["()"] * len(times)) + "->(m,m)")(*times)


@noise_operator.register(AbstractLinearProcess)
def _(process: AbstractLinearProcess, x: Sample, t: Time):
    return matrix_noise(process.diffusion(x, t), x)


@noise_divergence.register(AbstractLinearProcess)
def _(process: AbstractLinearProcess, x: Sample, t: Time) -> Sample:
    return jnp.zeros_like(x)


@interval.register(AbstractLinearProcess)
def _(process: AbstractLinearProcess) -> tuple[Scalar, Scalar]:
    """[1e-3, 1]: earlier, a channel that noise reaches through another one has a variance of t^3 < 1e-9."""
    return 1e-3, 1.0


# --- mean and covariance ---


@singledispatch
def moments(process: AbstractLinearProcess, t: Time, s: Time = 0.0) -> tuple[Matrices, Matrices]:
    """(Phi, Sigma) of x_t | x_s ~ N(Phi x_s, Sigma), s <= t: [m, m] for times [], [b, m, m] where one is [b].

    In general by integrating the equations above with Dopri8 at a relative tolerance of 1e-10 (float64) or 1e-6
    (float32), differentiable in both modes; NaN where that takes more than 256 steps.
    """

    def solve(t, s):
        dtype = jnp.result_type(t, float) if t.dtype == jnp.float64 else jnp.float32
        identity = jnp.eye(process.drift_matrix(t).shape[0], dtype=dtype)
        tolerance = 1e-10 if dtype == jnp.float64 else 1e-6

        def field(u, state, args):
            phi, sigma = state
            f, l = process.drift_matrix(s + u * (t - s)), process.noise_matrix(s + u * (t - s))
            rates = f @ phi, f @ sigma + sigma @ f.T + l @ l.T
            return jax.tree.map(lambda rate: ((t - s) * rate).astype(dtype), rates)

        # From s to t in u = 0 .. 1: the first step is the whole, so that Sigma is right relative to itself for small t.
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
        return jnp.where(ok, jnp.stack([phi, sigma]), jnp.nan)

    t, s = (jnp.asarray(time, jnp.result_type(float) if isinstance(time, float | int) else None) for time in (t, s))
    both = jnp.vectorize(solve, signature="(),()->(k,m,m)")(t, s)
    return both[..., 0, :, :], both[..., 1, :, :]


@singledispatch
def linear_kernel(process: AbstractLinearProcess, t: Time) -> tuple[Matrices, Matrices]:
    """(Phi, C), each [m, m] or [b, m, m]: x_t | x_0 ~ N(Phi x_0, C C'), C lower triangular, for t > 0.

    In general the Cholesky factor of Sigma. For `CriticallyDamped`, x_0 has velocity zero and the variance with which
    velocities start is in C. At t = 0, where nothing is random, C is NaN in general.
    """
    phi, sigma = moments(process, t)
    return phi, jnp.linalg.cholesky(sigma)


def linear_perturb(process: AbstractLinearProcess, x0: Sample, eps: Sample, t: Time) -> Sample:
    """x_t = Phi x0 + C eps with (Phi, C) = linear_kernel(process, t), all states [b, m, *d], t of shape [] or [b]."""
    phi, c = linear_kernel(process, t)
    return (apply_matrix(phi, x0) + apply_matrix(c, eps)).astype(x0.dtype)


def linear_prior(
    key: Key, process: AbstractLinearProcess, shape: tuple[int, ...], *, index: Index | None = None
) -> Float[Array, "b m *d"]:
    """States to start sampling from: N(0, C C') at t = 1, shape `shape` = (b, m, *d), C as in `linear_kernel`.

    Sample i is drawn from `fold_in(key, index_i)`: it depends on its global index (default 0 .. b - 1) alone.
    """
    keys = sample_keys(key, default_index(shape[0], index))
    eps = normal_like(keys, jnp.empty(shape, jnp.result_type(float)))
    return apply_matrix(linear_kernel(process, 1.0)[1].astype(eps.dtype), eps)


# --- constant matrices ---


def _as_floats(value):
    value = as_value(value)
    return value if jnp.issubdtype(value.dtype, jnp.floating) else as_value(value, float)


class LinearSDE(AbstractLinearProcess):
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

    matrix: Float[Array, "m m"] = eqx.field(converter=_as_floats)
    noise: Float[Array, "m m"] = eqx.field(converter=_as_floats)
    beta_min: Scalar = eqx.field(converter=as_scalar, default=1.0)
    beta_max: Scalar = eqx.field(converter=as_scalar, default=1.0)

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
        return jnp.asarray(rate(self, t) * self.matrix)

    def noise_matrix(self, t: Scalar) -> Float[Array, "m m"]:
        return jnp.asarray(jnp.sqrt(rate(self, t)) * self.noise)


def check_rates(process):
    """Raises `ValueError` where beta_min or beta_max is not positive and finite, naming it and its value."""
    for name in ("beta_min", "beta_max"):
        value = getattr(process, name)
        check((value > 0) & (value < jnp.inf), f"{name}: must be positive and finite, got {value}")


def rate(process, t):
    """beta(t), linear in t, of the shape of t, per unit of time."""
    return process.beta_min + (process.beta_max - process.beta_min) * t


def _reached(f, l):
    """The rank of [L, F L, .., F^(m - 1) L], each row of it scaled to length one."""
    precision, (f, l) = jnp.finfo(f.dtype).eps, (np.asarray(matrix, np.float64) for matrix in (f, l))
    blocks = [l]
    for _ in range(len(f) - 1):
        blocks.append(f @ blocks[-1] / max(np.abs(f).max(), np.finfo(float).tiny))
    rows = np.concatenate(blocks, axis=1)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.linalg.matrix_rank(rows / np.where(lengths > 0, lengths, 1), rtol=len(f) * precision)


@moments.register(LinearSDE)
def _(process: LinearSDE, t: Time, s: Time = 0.0) -> tuple[Matrices, Matrices]:
    tau, f, l = jnp.asarray(integrated_beta(process, t, s)), process.matrix, process.noise
    both = jnp.vectorize(lambda u: jnp.stack(_van_loan(f, l @ l.T, u)), signature="()->(k,m,m)")(tau)
    return both[..., 0, :, :], both[..., 1, :, :]


@jax.jit
def _van_loan(f, q, tau) -> Any:
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
