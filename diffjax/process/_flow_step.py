"""Steps of the probability flow, in a process's own coordinates and in two in which every process is the same.

    X(xt, t, s) = c_x xt + c_x0 A,    c_x = sigma_s/sigma_t,    c_x0 = alpha_s - alpha_t sigma_s/sigma_t

X is the flow map, which carries xt at t to xs at s. A(xt, t, s) is the average denoiser: with w = alpha/sigma and
y = x/sigma the flow is dy/dw = D(y, w), so that A is the mean of D over w from w_t to w_s. The step is exact with A,
and of first order with D(xt, t) in its place: DDIM's step. A share of sigma_s below 1 leaves room for fresh noise:
c_x = share sigma_s/sigma_t.

Divided by a scale, every Gaussian process is one flow on one clock (d = data_std, x0 and eps the pair behind xt):

    line      xt/(alpha d + sigma) = (1 - tau) x0/d + tau eps                   tau = sigma/(alpha d + sigma)
    circle    xt/sqrt(alpha^2 d^2 + sigma^2) = cos(phi) x0/d + sin(phi) eps     phi = atan2(sigma, alpha d)

Both are regular at t = 0 and t = 1, where the derivatives of alpha and sigma may be infinite.

Source: Song et al. 2021 (Denoising diffusion implicit models), eq. 12; the line, Liu et al. 2022 (rectified flow); the
circle, Lu & Song 2024 (TrigFlow).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffjax._arrays import as_samples, check_time, expand
from diffjax._numbers import checked_numbers
from diffjax._typing import Numbers, Sample, Scalar, Time
from diffjax.process._gaussian import AbstractGaussianProcess


def ddim_coefficients(
    alpha_t: Numbers, sigma_t: Numbers, alpha_s: Numbers, sigma_s: Numbers, share: Numbers = 1.0
) -> tuple[Numbers, Numbers]:
    """(c_x, c_x0) of xs = c_x xt + c_x0 x0_hat, of the shape of its arguments (which broadcast).

    With x0_hat = x0 it carries alpha_t x0 + sigma_t eps to alpha_s x0 + share sigma_s eps.

    Args:
      alpha_t: scale of the data where the step starts.
      sigma_t: standard deviation of the noise there; positive.
      alpha_s: scale of the data where the step ends.
      sigma_s: standard deviation of the noise there.
      share: the part of sigma_s that is noise of xt, in [0, 1]; the rest is left for fresh noise.

    Returns:
      c_x and c_x0.

    >>> from diffjax.process import ddim_coefficients
    >>> ddim_coefficients(0.0, 1.0, 0.6, 0.8)
    (0.8, 0.6)
    """
    c_x = share * sigma_s / sigma_t
    return c_x, alpha_s - c_x * alpha_t


def move(process: AbstractGaussianProcess, xt: Sample, t: Time, s: Time, average: Sample) -> Sample:
    """xs = c_x xt + c_x0 A, [b, *d]: the flow's step from t to s with the average denoiser A of it.

    With D(xt, t) in place of A it is DDIM's step. Where sigma_t = 0 there is nowhere to go, and xs = xt.

    >>> import jax.numpy as jnp
    >>> from diffjax import Rectified
    >>> from diffjax.process import move
    >>> print(move(Rectified(), jnp.array([[1.0]]), 0.5, 0.25, jnp.array([[0.0]])))
    [[0.5]]

    Args:
      process: the forward process that the times refer to.
      xt: states [b, *d] at t.
      t: [] or [b].
      s: [] or [b].
      average: A(xt, t, s), [b, *d].

    Raises:
      ValueError: a shape does not fit, or a number is not floating-point.
    """
    xt = as_samples("xt", xt)
    average = as_samples("average", average, xt.shape)
    c_x, c_x0 = _coefficients(process, xt, t, s)
    return c_x * xt + c_x0 * average


def average(process: AbstractGaussianProcess, xt: Sample, t: Time, s: Time, xs: Sample) -> Sample:
    """A = (xs - c_x xt)/c_x0, [b, *d]: the average denoiser of the step that carries xt at t to xs at s.

    The inverse of `move`. At s = t, where every A moves xt to itself, it is NaN.

    >>> import jax.numpy as jnp
    >>> from diffjax import Rectified
    >>> from diffjax.process import average
    >>> print(average(Rectified(), jnp.array([[1.0]]), 0.5, 0.25, jnp.array([[0.5]])))
    [[0.]]

    Args:
      process: the forward process that the times refer to.
      xt: states [b, *d] at t.
      t: [] or [b].
      s: [] or [b], other than t.
      xs: where the flow, or a solver, arrives at s, [b, *d].

    Raises:
      ValueError: a shape does not fit, or a number is not floating-point.
    """
    xt = as_samples("xt", xt)
    xs = as_samples("xs", xs, xt.shape)
    c_x, c_x0 = _coefficients(process, xt, t, s)
    return (xs - c_x * xt) / c_x0


def _coefficients(process, xt, t, s):
    """DDIM's coefficients, broadcast against xt; (1, 0) where sigma_t = 0."""
    check_time(t, xt)
    check_time(s, xt, "s")
    sigma_t = process.sigma(t)
    noisy = sigma_t > 0
    c_x, c_x0 = ddim_coefficients(process.alpha(t), jnp.where(noisy, sigma_t, 1.0), process.alpha(s), process.sigma(s))
    c_x, c_x0 = jnp.where(noisy, c_x, 1.0), jnp.where(noisy, c_x0, 0.0)
    return expand(c_x, xt), expand(c_x0, xt)


_AFTER_DATA = 1e-15  # a time at which sigma is small, and its square no denormal number


@checked_numbers
def angle(process: AbstractGaussianProcess, t: Time, data_std: Scalar = 1.0) -> Time:
    """phi = atan2(sigma, data_std alpha), of the shape of t: 0 without noise, pi/2 without data.

    Where sigma or alpha is 0 its derivative is that of a time next to it: sigma' may be infinite at t = 0 itself.

    >>> from diffjax import Cosine
    >>> from diffjax.process import angle
    >>> print(f"{angle(Cosine(), 0.5):.4f}")
    0.7854
    """
    time = jnp.asarray(t)
    # 0 and 1 may be given as whole numbers, which have no derivative.
    t = time if jnp.issubdtype(time.dtype, jnp.floating) else time.astype(jnp.result_type(float))
    inside = between_ends(process, t)
    phi = jnp.arctan2(process.sigma(inside), data_std * process.alpha(inside))
    return phi + jax.lax.stop_gradient(jnp.arctan2(process.sigma(t), data_std * process.alpha(t)) - phi)


def between_ends(process: AbstractGaussianProcess, t: Time) -> Time:
    """t [] or [b]; where sigma or alpha is 0 a time next to it, at which their derivatives are finite."""
    t = jnp.asarray(t)
    aside = jnp.where(
        process.sigma(t) == 0, _AFTER_DATA, jnp.where(process.alpha(t) == 0, -jnp.finfo(t.dtype).epsneg, 0.0)
    )
    return t + aside.astype(t.dtype)


class Line(NamedTuple):
    """The coordinates in which every process is rectified flow: z = (1 - tau) x0/d + tau eps.

    Attributes:
      data_std: d, the data's standard deviation per feature.
    """

    data_std: Scalar = 1.0

    def clock(self, process: AbstractGaussianProcess, t: Time) -> Time:
        """tau in [0, 1], of the shape of t."""
        phi = angle(process, t, self.data_std)
        return jnp.sin(phi) / (jnp.cos(phi) + jnp.sin(phi))

    def scale(self, process: AbstractGaussianProcess, t: Time) -> Time:
        """xt/z = alpha d + sigma, of the shape of t."""
        return process.alpha(t) * self.data_std + process.sigma(t)

    def velocity(self, clock: Time, x0: Sample, eps: Sample) -> Sample:
        """dz/dtau = eps - x0/d, [b, *d], of the pair x0, eps [b, *d]; the clock (tau, [] or [b]) does not matter."""
        x0 = as_samples("x0", x0)
        eps = as_samples("eps", eps, x0.shape)
        return eps - x0 / self.data_std


class Circle(NamedTuple):
    """The coordinates in which every process is the cosine schedule's rotation: z = cos(phi) x0/d + sin(phi) eps.

    Attributes:
      data_std: d, the data's standard deviation per feature.
    """

    data_std: Scalar = 1.0

    def clock(self, process: AbstractGaussianProcess, t: Time) -> Time:
        """phi in [0, pi/2], of the shape of t."""
        return angle(process, t, self.data_std)

    def scale(self, process: AbstractGaussianProcess, t: Time) -> Time:
        """xt/z = sqrt(alpha^2 d^2 + sigma^2), of the shape of t."""
        return jnp.hypot(process.alpha(t) * self.data_std, process.sigma(t))

    def velocity(self, clock: Time, x0: Sample, eps: Sample) -> Sample:
        """dz/dphi = cos(phi) eps - sin(phi) x0/d, [b, *d], of x0, eps [b, *d] and phi [] or [b]."""
        x0 = as_samples("x0", x0)
        eps = as_samples("eps", eps, x0.shape)
        return expand(jnp.cos(clock), x0) * eps - expand(jnp.sin(clock), x0) * (x0 / self.data_std)
