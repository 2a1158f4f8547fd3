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
from numbers import Integral
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffjax._arrays import check, is_concrete
from diffjax._typing import Scalar
from diffjax.parameterisation import AbstractParameterisation
from diffjax.process import AbstractGaussianProcess, time_from_logsnr
from diffjax.samplers._base import namespace, on_grid, schedule
from diffjax.samplers._ddim import optional_eta
from diffjax.samplers._multistep import AbstractMultistep, Correction, Weights

MAX_ORDER = 8
"""Beyond it polynomial extrapolation amplifies rounding more than it gains."""


def by_logsnr(l: Any, t: Any) -> Any:
    """The clock l = log(alpha/sigma), of the shape of l."""
    return l


def by_noise(l: Any, t: Any) -> Any:
    """The clock rho = sigma/alpha, of the shape of l."""
    return namespace(l).exp(-l)


def by_time(l: Any, t: Any) -> Any:
    """The clock t, the process's own time, of the shape of t."""
    return t


class ExponentialAdams(AbstractMultistep):
    """An exponential Adams method: any prediction, any order, with or without a corrector, any noise.

    One evaluation a step whatever its order. The first steps have fewer points and so lower order, a step to sigma = 0
    or from alpha = 0 is DDIM's, and what is remembered is `order` samples. The error of the first step, of second order
    in its size, is small where the prediction hardly changes in noise; it shows with v on a process whose sigma(1) is
    large (`Karras`), where order 3 becomes 2 beyond some hundred steps.

    Attributes:
      prediction: what is interpolated, such as `X0Prediction()`, `EpsPrediction()` or `KarrasPrediction(data_std)`.
      nominal: the argument `order`, 1 to 8: the order of the predictor, or of the corrector where there is one (the
        predictor's is then one less; its last step is not corrected). `order`, the order of convergence, is the same
        without noise, and a weak order of at most 2 with it. On fewer steps than that a method has fewer points.
      corrector: whether a step is taken again, at no further evaluation, when its end has been evaluated.
      eta: 0 (the number) for the flow, 1 for the reverse SDE. An array is a leaf.
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
    clock: Callable[[Any, Any], Any] = eqx.field(static=True, default=by_logsnr)
    orders: tuple[int, ...] | None = eqx.field(static=True, default=None)

    def __init__(
        self,
        prediction: AbstractParameterisation,
        order: int = 2,
        corrector: bool = False,
        *,
        eta: Scalar | None = None,
        clock: Callable[[Any, Any], Any] = by_logsnr,
        orders: Sequence[int] | None = None,
    ):
        lowest = 1 + corrector
        if not (isinstance(order, Integral) and lowest <= order <= MAX_ORDER):
            what = "an integer, with a corrector" if corrector else "an integer"
            raise ValueError(f"order: must be {what} from {lowest} to {MAX_ORDER}, got {order!r}")
        self.prediction, self.nominal, self.corrector = prediction, int(order), bool(corrector)
        self.eta, self.clock = optional_eta(eta), clock
        self.orders = None if orders is None else tuple(int(points) for points in orders)
        if self.eta is not None:
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

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Weights:
        n = len(ts) - 1
        if self.orders is not None and len(self.orders) != n:
            raise ValueError(f"orders: one a step is needed, {n} for this grid, got {len(self.orders)}")
        grid = grid_of(process, self.prediction, ts, self.eta)
        caps = np.minimum(np.arange(1, n + 1), self.orders or self.points)
        now, past = adams_weights(grid, self.clock, caps, self.points)
        weights = ddim_at_the_ends(grid, now, past, self.eta)
        return weights._replace(correct=_correction(grid, self.clock, caps, self.points)) if self.corrector else weights


class Grid(NamedTuple):
    """A process and a prediction on a grid of n steps: what weights are made of. `namespace` tells NumPy or jnp."""

    alpha: Any
    sigma: Any
    spread: Any
    l: Any
    t: Any
    on_x: Any
    """N = on_x xt + on_data D at each step's start, [n]."""
    on_data: Any
    inside: Any
    """Whether both ends of a step have a finite l, [n]."""
    nodes_l: Any
    """Gauss-Legendre nodes of each step, [n, q]."""
    nodes_t: Any
    kernel: Any
    """alpha_s (1 + eta^2) E B at the nodes, times the quadrature's weights, [n, q]."""
    keep: Any
    """E(l_t) alpha_s/alpha_t, [n]."""
    noise: Any
    """The standard deviation of the noise, [n]; None without."""


def _coefficients(parts, t):
    process, prediction = parts
    return prediction.coefficients(process, t)


def _times(process, l):
    return time_from_logsnr(process, 2 * l)


_POINTS, _MASSES = np.polynomial.legendre.leggauss(64)


def _tails():
    """J [q, q]: the integral from node i to 1 of the Lagrange polynomial of node j, by Legendre's series."""
    q = len(_POINTS)
    P = np.polynomial.legendre.legvander(_POINTS, q)
    tails = np.concatenate([1 - _POINTS[:, None], (P[:, : q - 1] - P[:, 2:]) / (2 * np.arange(1, q) + 1)], axis=1)
    return tails @ ((np.arange(q) + 0.5)[:, None] * P[:, :q].T * _MASSES)


_TAILS = _tails()


def grid_of(process: AbstractGaussianProcess, prediction: Any, ts: Any, eta: Any = None) -> Grid:
    """What the weights of a prediction on a descending grid ts, shape [n + 1], are made of."""
    at = schedule(process, ts)
    at = at if is_concrete((eta, prediction)) else jax.tree.map(jnp.asarray, at)
    xp = namespace(at.sigma)
    alpha, sigma, l = at.alpha, at.sigma, at.half_logsnr
    finite = xp.isfinite(l)
    inside = finite[:-1] & finite[1:]
    # Where an end is infinite any finite step does: its weights are not used.
    some = xp.where(finite, l, 0.0)
    l0, l1 = xp.where(inside, some[:-1], 0.0)[:, None], xp.where(inside, some[1:], 1.0)[:, None]
    half = 0.5 * (l1 - l0)
    nodes = l0 + half * (1 + xp.asarray(_POINTS, l.dtype))
    t = on_grid(_times, process, nodes.reshape(-1))  # processes take times of shape [b]
    t, a, b = (
        xp.broadcast_to(c, t.shape).reshape(nodes.shape) for c in (t, *on_grid(_coefficients, (process, prediction), t))
    )
    rho = xp.exp(-nodes)
    factor = 1.0 if eta is None else 1 + _number(eta, xp) ** 2
    A, B = factor * rho * a / (b - rho * a), -factor * rho / (b - rho * a)
    masses = half * xp.asarray(_MASSES, l.dtype)
    decay = xp.exp(half * (A @ xp.asarray(_TAILS, l.dtype).T))
    growth = alpha[1:] / xp.where(alpha[:-1] > 0, alpha[:-1], 1.0)
    keep = growth * xp.exp(xp.sum(masses * A, axis=1))
    noise = None
    if eta is not None:
        noise = alpha[1:] * _number(eta, xp) * xp.sqrt(2 * xp.sum(masses * (decay * rho) ** 2, axis=1))
    on_x, on_data = _answers(process, prediction, ts, alpha[:-1], sigma[:-1], xp)
    kernel = alpha[1:, None] * masses * decay * B
    ts = ts if xp is jnp else np.asarray(ts, np.float64)
    return Grid(alpha, sigma, at.spread, l, ts, on_x, on_data, inside, nodes, t, kernel, keep, noise)


def _number(eta, xp):
    return np.asarray(eta, np.float64) if xp is np else eta


def _answers(process, prediction, ts, alpha, sigma, xp):
    """N = on_x xt + on_data D at every step's start; finite, if of no use, where a prediction is singular."""
    a, b = on_grid(_coefficients, (process, prediction), ts[:-1])
    on_x, on_data = b / sigma, a - b * alpha / sigma
    sound = xp.isfinite(on_x) & xp.isfinite(on_data)
    return xp.where(sound, on_x, 0.0), xp.where(sound, on_data, 1.0)


def adams_weights(grid: Grid, clock: Any, caps: Any, points: int) -> tuple[Any, Any]:
    """Adams-Bashforth: (now [n], past [n, points - 1]), each step through at most caps [n] of its latest points."""
    n = len(caps)
    index = np.arange(n)[:, None] - np.arange(points)
    weights = _lagrange(grid, clock, index, np.arange(points) < caps[:, None])
    return weights[:, 0], weights[:, 1:]


def _correction(grid, clock, caps, points):
    """Adams-Moulton for the step before each: through its end and the points that its predictor had."""
    xp, n = namespace(grid.l), len(caps)
    index = np.arange(n)[:, None] - np.arange(points + 1)
    before = np.concatenate([[0], caps[:-1]])
    use = np.arange(points + 1) <= before[:, None]
    step = np.maximum(np.arange(n) - 1, 0)
    weights = _lagrange(grid, clock, index, use, step)
    on = xp.concatenate([xp.zeros_like(grid.inside[:1]), grid.inside[:-1]])
    on, zero = on & xp.asarray(np.arange(n) > 0), xp.zeros_like(weights)
    weights = xp.where(on[:, None], weights, zero)
    on = xp.asarray(on, weights.dtype)
    return Correction(1 - on, on, weights[:, 0], weights[:, 1:])


def _lagrange(grid, clock, index, use, step: Any = slice(None)):
    """The integral over each step of its kernel times the Lagrange polynomial of grid point index [n, p], [n, p].

    Points that are not in `use`, or have no finite l, are left out: their weight is 0.
    """
    xp = namespace(grid.l)
    index = np.maximum(index, 0)
    finite = xp.isfinite(grid.l)
    c_grid = clock(xp.where(finite, grid.l, 0.0), grid.t)[index]
    c_nodes = clock(grid.nodes_l, grid.nodes_t)[step]
    use = finite[index] & xp.asarray(use)
    weights = []
    for i in range(index.shape[1]):
        value = xp.where(use[:, i, None], grid.kernel[step], 0.0)
        for j in range(index.shape[1]):
            if j != i:
                both = use[:, i] & use[:, j]
                gap = xp.where(both, c_grid[:, i] - c_grid[:, j], 1.0)
                value = value * xp.where(both[:, None], (c_nodes - c_grid[:, j, None]) / gap[:, None], 1.0)
        weights.append(xp.sum(value, axis=1))
    return xp.stack(weights, axis=1)


def ddim_at_the_ends(grid: Grid, now: Any, past: Any, eta: Any = None) -> Weights:
    """A method's weights, and DDIM's (by eta, at most its ancestral step) for a step from alpha = 0 or to sigma = 0."""
    xp, inside = namespace(grid.l), grid.inside
    ratio = grid.sigma[1:] / grid.sigma[:-1]
    keep, noise = ratio, grid.noise
    if eta is not None:
        amount = xp.minimum(_number(eta, xp), xp.ones_like(ratio))
        square = (1 - amount**2) + (amount * ratio * grid.alpha[:-1] / grid.alpha[1:]) ** 2
        keep = ratio * xp.where(square > 0, xp.sqrt(xp.where(square > 0, square, 1.0)), 0.0)
        noise = xp.where(inside, noise, amount * grid.sigma[1:] * grid.spread / grid.sigma[:-1])
    data = xp.where(inside, 0.0, grid.alpha[1:] - keep * grid.alpha[:-1])
    now, past = xp.where(inside, now, 0.0), xp.where(inside[:, None], past, 0.0)
    return Weights(grid.on_x, grid.on_data, xp.where(inside, grid.keep, keep), data, now, past, noise)
