"""Exponential Adams methods: the probability flow and its noisy kin, stepped by what a network predicts.

With z = x/alpha, rho = sigma/alpha and l = -log rho, a network that predicts N = a x0 + b eps turns the eta family
(0 the probability flow, 1 the reverse SDE) into one linear equation with a slow right-hand side,

    dz = (1 + eta^2) (A z + B N) dl + sqrt(2) eta rho dw,    A = rho a/(b - rho a),   B = -rho/(b - rho a)

    z_s = E(l_t) z_t + (1 + eta^2) int E(l) B(l) N(l) dl + ( 2 eta^2 int E^2 rho^2 dl )^(1/2) z~,
    E(l) = exp( (1 + eta^2) int_l^{l_s} A )

N is replaced by the polynomial in some clock c(l) through its latest values (Adams-Bashforth), or through these and the
one at s (Adams-Moulton, the corrector); the integrals are by Gauss-Legendre, in float64 where the grid is concrete.
What N is (data, eps, v, F, ...) is what is held constant at order 1, and decides what is exact: eps and data for a
point, F for Gaussian data of its `data_std`.

    data, clock l                        DDIM, DPM-Solver++ multistep (exponential form), UniPC (varying coefficients)
    data with eta, corrector             SA-Solver
    eps, clock l | rho | t               DPM-Solver multistep | LMS, rho-DEIS | t-DEIS
    v, F                                 none that has a name

Sources: Hochbruck & Ostermann 2010, section 2.5 (exponential Adams methods); Zhang & Chen 2023 (DEIS), eqs. 10-15;
Lu et al. 2022b (DPM-Solver++), section 4; Zhao et al. 2023 (UniPC), section 3; Xue et al. 2023 (SA-Solver), eqs. 14-17.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from typing_extensions import TypeAliasType

from diffjax._arrays import at_once, check
from diffjax._numbers import checked_numbers
from diffjax._typing import OnGrid, Scalar
from diffjax.parameterisation import AbstractParameterisation
from diffjax.process import ddim_coefficients
from diffjax.samplers._ddim import noisy_split, optional_eta
from diffjax.samplers._multistep import AbstractMultistep, Correction, MultistepWeights
from diffjax.samplers._stepper import ScheduleOnGrid, namespace, on_grid

Clock = TypeAliasType("Clock", Callable[[OnGrid, OnGrid], OnGrid])
"""`(l, t) -> c` of one shape: the variable of the polynomials."""

MAX_ORDER = 8
"""Beyond it polynomial extrapolation amplifies rounding more than it gains."""


def by_logsnr(l: OnGrid, t: OnGrid) -> OnGrid:
    """The clock l = log(alpha/sigma), of the shape of l."""
    return l


def by_noise(l: OnGrid, t: OnGrid) -> OnGrid:
    """The clock rho = sigma/alpha, of the shape of l."""
    return namespace(l).exp(-l)


def by_time(l: OnGrid, t: OnGrid) -> OnGrid:
    """The clock t, the process's own time, of the shape of t."""
    return t


@checked_numbers
class ExponentialAdams(AbstractMultistep):
    """An exponential Adams method: any prediction, any order, with or without a corrector, any noise.

    One evaluation a step whatever its order. The first steps have fewer points and so lower order, a step to sigma = 0
    or from alpha = 0 is DDIM's, and what is remembered is `order` samples. The error of the first step, of second order
    in its size, is small where the prediction hardly changes in noise; it shows with v on a process whose sigma(1) is
    large (`EDM`), where order 3 becomes 2 beyond some hundred steps.

    Attributes:
      prediction: what is interpolated, such as `X0Prediction()`, `EpsPrediction()` or `EDMPrediction(data_std)`.
      order (argument): 1 to 8, the order of the predictor, or of the corrector where there is one (the predictor's is
        then one less; its last step is not corrected). On fewer steps than that a method has fewer points. It is kept
        as `nominal`: the attribute `order`, the order of convergence, is the same without noise, and a weak order of at
        most 2 with it.
      corrector: whether a step is taken again, at no further evaluation, when its end has been evaluated.
      eta: amount of noise, a scalar; 0 is the probability-flow ODE, 1 the reverse SDE. An array is a leaf; the number
        0 draws no noise.
      clock: the variable of the polynomials, `(l, t) -> c` of one shape, strictly monotone: `by_logsnr`, `by_noise`,
        `by_time`.
      orders: at most so many points in each step's predictor, one integer a step, for a given number of steps.

    Raises:
      ValueError: order is not an integer in 1..8 (2..8 with a corrector), eta is negative, or `orders` asks a step for
        more points than there are.
    """

    prediction: AbstractParameterisation
    nominal: int = eqx.field(static=True, default=2)
    corrector: bool = eqx.field(static=True, default=False)
    eta: Scalar | None = None
    clock: Clock = eqx.field(static=True, default=by_logsnr)
    orders: tuple[int, ...] | None = eqx.field(static=True, default=None)

    def __init__(
        self,
        prediction: AbstractParameterisation,
        order: int = 2,
        corrector: bool = False,
        *,
        eta: Scalar | None = None,
        clock: Clock = by_logsnr,
        orders: Sequence[int] | None = None,
    ):
        check_order(order, corrector)
        self.prediction, self.nominal, self.corrector = prediction, int(order), bool(corrector)
        self.eta, self.clock = optional_eta("eta", eta), clock
        self.orders = None if orders is None else tuple(orders)
        if self.eta is not None:
            with at_once(self.eta):
                check(self.eta >= 0, f"eta: must not be negative, got {self.eta}")
        for k, points in enumerate(self.orders or ()):
            if not 1 <= points <= min(k + 1, self.points):
                raise ValueError(f"orders: step {k} has 1 to {min(k + 1, self.points)} points, got {points}")

    @property
    def order(self) -> int:
        return self.nominal if self.eta is None else min(self.nominal, 2)

    @property
    def points(self) -> int:
        """How many evaluations the predictor interpolates."""
        return self.nominal - self.corrector

    @property
    def history(self) -> int:
        return self.points - (not self.corrector)

    @property
    def stochastic(self) -> bool:
        return self.eta is not None

    @property
    def corrects(self) -> bool:
        return self.corrector

    def prepare(self, grid: ScheduleOnGrid) -> MultistepWeights:
        more = {"corrector": self.corrector, "eta": self.eta, "clock": self.clock, "orders": self.orders}
        return adams_weights(grid, self.prediction, self.points, **more)


def check_order(order: int, corrector: bool = False) -> None:
    """Raises `ValueError` where an order, a scalar, is no integer from 1 (2 with a corrector) to 8."""
    lowest = 1 + corrector
    if not lowest <= order <= MAX_ORDER:
        what = "an integer, with a corrector" if corrector else "an integer"
        raise ValueError(f"order: must be {what} from {lowest} to {MAX_ORDER}, got {order!r}")


def adams_weights(
    grid: ScheduleOnGrid,
    prediction: AbstractParameterisation,
    points: int,
    *,
    corrector: bool = False,
    eta: Scalar | None = None,
    clock: Clock = by_logsnr,
    orders: Sequence[int] | None = None,
) -> MultistepWeights:
    """The weights of the exponential Adams method that interpolates `points` evaluations of a prediction, each [n].

    Other arguments (eta a scalar or None) as `ExponentialAdams` has them.
    """
    n = len(grid.ts) - 1
    if orders is not None and len(orders) != n:
        raise ValueError(f"orders: one a step is needed, {n} for this grid, got {len(orders)}")
    line = linear_part(grid, prediction, eta)
    caps = np.minimum(np.arange(1, n + 1), orders or points)
    index = np.arange(n)[:, None] - np.arange(points)
    integrals = _lagrange(line, clock, index, np.arange(points) < caps[:, None])
    weights = ddim_at_the_ends(line, integrals[:, 0], integrals[:, 1:], eta)
    return weights._replace(correct=_correction(line, clock, caps, points)) if corrector else weights


class LinearPart(NamedTuple):
    """The linear equation above on a grid of n steps: what weights are made of."""

    grid: ScheduleOnGrid
    n_x: OnGrid
    """N = n_x xt + n_x0 D at each step's start, [n]."""
    n_x0: OnGrid
    inside: OnGrid
    """Whether both ends of a step have a finite l, [n]."""
    nodes_l: OnGrid
    """Gauss-Legendre nodes of each step, [n, q]."""
    nodes_t: OnGrid
    kernel: OnGrid
    """alpha_s (1 + eta^2) E B at the nodes, times the quadrature's weights, [n, q]."""
    c_x: OnGrid
    """E(l_t) alpha_s/alpha_t, [n]."""
    c_z: OnGrid | None
    """The standard deviation of the noise, [n]; None without."""


_POINTS, _MASSES = np.polynomial.legendre.leggauss(64)


def _tails():
    """J [q, q]: the integral from node i to 1 of the Lagrange polynomial of node j, by Legendre's series."""
    q = len(_POINTS)
    P = np.polynomial.legendre.legvander(_POINTS, q)
    tails = np.concatenate([1 - _POINTS[:, None], (P[:, : q - 1] - P[:, 2:]) / (2 * np.arange(1, q) + 1)], axis=1)
    return tails @ ((np.arange(q) + 0.5)[:, None] * P[:, :q].T * _MASSES)


_TAILS = _tails()


def linear_part(grid: ScheduleOnGrid, prediction: AbstractParameterisation, eta: Scalar | None = None) -> LinearPart:
    """What the weights of a prediction, for an eta (a scalar) or None, are made of on a grid of n steps."""
    xp, alpha, sigma, l = grid.xp, grid.alpha, grid.sigma, grid.half_logsnr
    finite = xp.isfinite(l)
    inside = finite[:-1] & finite[1:]
    # Where an end is infinite any finite step does: its weights are not used.
    some = xp.where(finite, l, 0.0)
    l0, l1 = xp.where(inside, some[:-1], 0.0)[:, None], xp.where(inside, some[1:], 1.0)[:, None]
    half = 0.5 * (l1 - l0)
    nodes = l0 + half * (1 + xp.asarray(_POINTS, l.dtype))
    t = grid.evaluate(_times, nodes.reshape(-1))  # processes take times of shape [b]
    t, a, b = (xp.broadcast_to(c, t.shape).reshape(nodes.shape) for c in (t, *_coefficients(grid, prediction, t)))
    rho = xp.exp(-nodes)
    factor = 1.0 if eta is None else 1 + eta**2
    A, B = factor * rho * a / (b - rho * a), -factor * rho / (b - rho * a)
    masses = half * xp.asarray(_MASSES, l.dtype)
    decay = xp.exp(half * (A @ xp.asarray(_TAILS, l.dtype).T))
    growth = alpha[1:] / xp.where(alpha[:-1] > 0, alpha[:-1], 1.0)
    c_x = growth * xp.exp(xp.sum(masses * A, axis=1))
    c_z = None
    if eta is not None:
        c_z = alpha[1:] * eta * xp.sqrt(2 * xp.sum(masses * (decay * rho) ** 2, axis=1))
    # N at every step's start; finite, if of no use, where a prediction is singular.
    a, b = _coefficients(grid, prediction, grid.ts[:-1])
    n_x, n_x0 = b / sigma[:-1], a - b * alpha[:-1] / sigma[:-1]
    sound = xp.isfinite(n_x) & xp.isfinite(n_x0)
    n_x, n_x0 = xp.where(sound, n_x, 0.0), xp.where(sound, n_x0, 1.0)
    return LinearPart(grid, n_x, n_x0, inside, nodes, t, alpha[1:, None] * masses * decay * B, c_x, c_z)


def _coefficients(grid, prediction, t):
    return jax.tree.map(grid.xp.asarray, on_grid(_of_prediction, (grid.process, prediction), t))


def _of_prediction(parts, t):
    process, prediction = parts
    return prediction.coefficients(process, t)


def _times(process, l):
    return process.time_from_logsnr(2 * l)


def _correction(line, clock, caps, points):
    """Adams-Moulton for the step before each: through its end and the points that its predictor had."""
    xp, n = line.grid.xp, len(caps)
    index = np.arange(n)[:, None] - np.arange(points + 1)
    before = np.concatenate([[0], caps[:-1]])
    use = np.arange(points + 1) <= before[:, None]
    step = np.maximum(np.arange(n) - 1, 0)
    weights = _lagrange(line, clock, index, use, step)
    on = xp.concatenate([xp.zeros_like(line.inside[:1]), line.inside[:-1]])
    on, zero = on & xp.asarray(np.arange(n) > 0), xp.zeros_like(weights)
    weights = xp.where(on[:, None], weights, zero)
    on = xp.asarray(on, weights.dtype)
    return Correction(1 - on, on, weights[:, 0], weights[:, 1:])


def _lagrange(line, clock, index, use, step: slice | np.ndarray = slice(None)):
    """The integral over each step of its kernel times the Lagrange polynomial of grid point index [n, p], [n, p].

    Points that are not in `use`, or have no finite l, are left out: their weight is 0.
    """
    xp, l = line.grid.xp, line.grid.half_logsnr
    index = np.maximum(index, 0)
    finite = xp.isfinite(l)
    c_grid = clock(xp.where(finite, l, 0.0), line.grid.ts)[index]
    c_nodes = clock(line.nodes_l, line.nodes_t)[step]
    use = finite[index] & xp.asarray(use)
    weights = []
    for i in range(index.shape[1]):
        value = xp.where(use[:, i, None], line.kernel[step], 0.0)
        for j in range(index.shape[1]):
            if j != i:
                both = use[:, i] & use[:, j]
                gap = xp.where(both, c_grid[:, i] - c_grid[:, j], 1.0)
                value = value * xp.where(both[:, None], (c_nodes - c_grid[:, j, None]) / gap[:, None], 1.0)
        weights.append(xp.sum(value, axis=1))
    return xp.stack(weights, axis=1)


def ddim_at_the_ends(line: LinearPart, c_now: OnGrid, c_past: OnGrid, eta: Scalar | None = None) -> MultistepWeights:
    """A method's weights, and DDIM's (by eta, at most its ancestral step) for a step from alpha = 0 or to sigma = 0."""
    grid, inside = line.grid, line.inside
    xp, c_z = grid.xp, line.c_z
    ends = grid.alpha[:-1], grid.sigma[:-1], grid.alpha[1:], grid.sigma[1:]
    c_x, c_x0 = ddim_coefficients(*ends)
    if eta is not None:
        share, fresh = noisy_split(grid, xp.minimum(eta, xp.ones_like(c_x)))
        c_x, c_x0 = ddim_coefficients(*ends, share)
        c_z = xp.where(inside, c_z, fresh)
    c_now, c_past = xp.where(inside, c_now, 0.0), xp.where(inside[:, None], c_past, 0.0)
    c_x, c_x0 = xp.where(inside, line.c_x, c_x), xp.where(inside, 0.0, c_x0)
    return MultistepWeights(line.n_x, line.n_x0, c_x, c_x0, c_now, c_past, c_z)
