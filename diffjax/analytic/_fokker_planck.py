"""The Fokker-Planck equation of any process on a 1-D or 2-D box: conservative finite volumes in space, diffrax in time.

    dp/dt = -div(p f) + 1/2 Laplacian(g^2 p)        (g inside: for g = g(x, t) it does not commute)
          = -sum_j d_j J_j,   J_j = u_j p - D_j d_j p,   D_j = g_j^2/2,   u_j = f_j - d_j D_j

Between two cells the flux is that of a constant J across the face, with z = u h/D there and B(z) = z/(e^z - 1)
(Scharfetter & Gummel 1969; Chang & Cooper 1970), so that cells are the states of a Markov chain that jumps to its
neighbours at the rates `right` and `left`. Where |z| > 2, drift outweighs noise and that becomes upwinding, which
diffuses too much; a limited slope of the upwind cell (van Leer 1974) takes c = max(|u| h/2 - D, 0)/h^2 of it back:

    J = (D/h) (B(-z) p_left - B(z) p_right) + c h slope = h (right p_left - left p_right + c slope)

What leaves a cell is at most (right + left + 2c) p, and what enters it is not negative: an Euler step of dt keeps
p >= 0 where dt times that rate is at most 1, and Heun's method is the mean of the old density and of two Euler steps. A
step is kept where this holds at both of its ends. Mass is conserved to rounding, for what leaves one cell enters
another, and no flux goes through the walls. Second order in h.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import slice_in_dim
from jaxtyping import Array, Float

from diffjax._arrays import (
    answered,
    as_samples,
    at_once,
    check,
    check_times,
    expand,
    is_concrete,
    nan_unless,
    time_dtype,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import GridLike, LogDensity
from diffjax.process import AbstractGaussianProcess, AbstractProcess

MAX_ROUGHNESS = 0.25
"""Of sum |second difference of p| / sum p along an axis; (h/s)^2 for a normal density of standard deviation s."""

MAX_AT_WALLS = 1e-3
"""Of the mass, in the cells at the walls."""
_LOOKS = 32
_REMEDY = "; take fewer cells, a larger box (steps go as one over their width squared), closer times, or more steps"


@checked_numbers
class Box(eqx.Module):
    """A box in one or two dimensions, cut into equal cells.

    Args:
      low: its lower corner, [d], or a number for d = 1. The density must vanish at the walls at all times: what reaches
        one stays there, which is not what the process does.
      high: its upper corner, [d] or a number.
      cells: how many along each axis, a tuple of d, or a number.

    Raises:
      ValueError: d is neither 1 nor 2, a corner is not above the other, or there are fewer than 3 cells along an axis.
    """

    low: Float[Array, " d"]
    high: Float[Array, " d"]
    cells: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, low: Any, high: Any, cells: int | tuple[int, ...]):
        with at_once(low, high):  # `cell_widths` looks at them
            self.low, self.high = (jnp.atleast_1d(jnp.asarray(end, jnp.result_type(float))) for end in (low, high))
        self.cells = (cells,) if isinstance(cells, int) else tuple(cells)
        d = len(self.cells)
        if d not in (1, 2):
            raise ValueError(f"cells: a box has 1 or 2 dimensions, got {self.cells}")
        if self.low.shape != (d,) or self.high.shape != (d,):
            raise ValueError(f"low, high: {d} numbers are needed for cells = {self.cells}, got {low} and {high}")
        check(self.high > self.low, f"high: must be above low = {low}, got {high}")
        check(min(self.cells) >= 3, f"cells: at least 3 along an axis are needed, got {self.cells}")


def cell_widths(box: Box) -> Float[Array, " d"]:
    """The sides of one cell, shape [d]; their product is its volume.

    >>> from diffjax import analytic
    >>> print(analytic.cell_widths(analytic.Box([0.0], [1.0], 4)))
    [0.25]
    """
    return (box.high - box.low) / np.asarray(box.cells, box.low.dtype)


def cell_centres(box: Box) -> Float[Array, "*cells d"]:
    """The middle of each cell, shape [*cells, d].

    >>> from diffjax import analytic
    >>> print(analytic.cell_centres(analytic.Box([0.0], [1.0], 4)).ravel())
    [0.125 0.375 0.625 0.875]
    """
    return _points(box, *(np.arange(n) + 0.5 for n in box.cells))


def _points(box, *places):
    """The points at the given places along each axis, in cells from its lower end: [*places, d]."""
    mesh = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).astype(box.low.dtype)
    return box.low + mesh * cell_widths(box)


@checked_numbers
def cell_averages(box: Box, log_density: LogDensity, nodes: int = 4) -> Float[Array, "*cells"]:
    """The mean of a density over each cell, shape [*cells], by Gauss-Legendre quadrature.

    >>> import jax.numpy as jnp
    >>> from diffjax import analytic
    >>> box = analytic.Box([0.0], [1.0], 4)
    >>> print((8 * analytic.cell_averages(box, lambda x: jnp.log(x[:, 0]))).round(2))  # of the density x
    [1. 3. 5. 7.]

    Args:
      box: the cells.
      log_density: `x [n, d] -> [n]`, such as `lambda x: mixture.log_prob(process, x, t)`.
      nodes: of the quadrature, along each axis of a cell.
    """
    at, weights = np.polynomial.legendre.leggauss(nodes)
    places = [((np.arange(n) + 0.5)[:, None] + 0.5 * at).ravel() for n in box.cells]
    x = _points(box, *places)
    x = x.reshape(-1, len(box.cells))
    p = jnp.exp(answered("log_density", log_density(x), x.shape[:1])).reshape([len(place) for place in places])
    for axis, n in enumerate(box.cells):
        p = jnp.moveaxis(p, axis, -1)
        p = p.reshape(*p.shape[:-1], n, nodes) @ jnp.asarray(weights / 2, p.dtype)
        p = jnp.moveaxis(p, -1, axis)
    return p


@checked_numbers
def fokker_planck(
    process: AbstractProcess, box: Box, density0: Float[Array, "*cells"], ts: GridLike, *, max_steps: int = 1_000_000
) -> Float[Array, "points *cells"]:
    """The density of the forward SDE through the times ts, from density0 at ts[0], as cell averages.

    The number of steps grows with the square of the number of cells along an axis: about 2 sum_j D_j/h_j^2 a unit of
    time.

    Args:
      process: any process on vectors of 1 or 2 features; its noise may depend on x; g g' must be diagonal.
      box: where, in cells. Their widths are to be at most half the width of the narrowest feature of the density.
      density0: the density at ts[0], [*cells], not negative, of mass 1; see `cell_averages`.
      ts: ascending times [points] in [0, 1]; those of a Gaussian process are brought into its `interval`, as by
        `simulate`.
      max_steps: between two times. Too many of them are refused before the first, by an estimate from below.

    Returns:
      The densities at all of ts, [points, *cells], the first of them density0: of equal mass to rounding, and none of
      them negative. NaN from where max_steps did not suffice.

    Raises:
      ValueError: g g' is not diagonal; density0 is negative, does not fit the box or has not mass 1 to 1e-3; the
        cells are too coarse for it or for what it becomes; the box is too small for them, with more than 1e-3 of the
        mass in the cells at the walls; drift or noise is not finite on them; ts does not ascend, leaves [0, 1], or has
        two times beyond the same end of the interval; max_steps do not suffice.
    """
    density0 = as_samples("density0", density0)
    if density0.shape != box.cells:
        raise ValueError(f"density0: one number a cell is needed, shape {box.cells}, got {density0.shape}")
    _check_density(box, density0)
    _check_cells(box, density0[None], ts)
    ts = _clipped(process, ts, time_dtype(density0))
    _check_rates(process, box, ts, max_steps)
    densities, enough = _solve(process, box, density0, ts, max_steps)
    check(enough, f"cells: {box.cells} take more than max_steps = {max_steps} steps between two times{_REMEDY}")
    _check_cells(box, densities, ts)
    return densities


def _clipped(process, ts, dtype):
    if is_concrete(ts):
        check_times(np.asarray(ts, np.float64), "ascend")
    ts = jnp.asarray(ts, dtype)
    if not isinstance(process, AbstractGaussianProcess):
        return ts
    low, high = process.interval()
    ts = jnp.clip(ts, jnp.asarray(low, ts.dtype), jnp.asarray(high, ts.dtype))
    check(ts[1:] > ts[:-1], f"ts: two times lie beyond the same end of the process's interval [{low}, {high}]")
    return ts


def _check_density(box, density0):
    if is_concrete((box, density0)):
        lowest, mass = np.asarray(density0).min(), np.asarray(density0).sum() * _widths(box).prod()
        check(lowest >= 0, f"density0: must not be negative, got {lowest}")
        check(abs(mass - 1) <= 1e-3, f"density0: must have mass 1 in the box, on its cells, got {mass}")


def _widths(box):
    """`cell_widths` as numbers, inside jit too."""
    return (np.asarray(box.high) - np.asarray(box.low)) / box.cells


def _check_cells(box, densities, ts):
    """Refuses cells on which a density changes its slope too much from one to the next, or that end too early."""
    if not is_concrete((box, densities, ts)):
        return
    densities = np.asarray(densities)
    for axis, cells in enumerate(box.cells):
        second = np.abs(np.diff(densities, 2, axis=axis + 1))
        over = tuple(range(1, densities.ndim))
        rough = second.sum(over) / densities.sum(over)
        worst = int(np.argmax(rough))
        check(
            ~(rough[worst] > MAX_ROUGHNESS),
            f"cells: {cells} along axis {axis}, each {_widths(box)[axis]:.4g} wide, are too coarse for the "
            f"density at t = {float(ts[worst]):.4g}: its second differences sum to {rough[worst]:.3g}, more than "
            f"{MAX_ROUGHNESS}",
        )
    inner = densities[(slice(None), *(slice(1, -1),) * len(box.cells))]
    over = tuple(range(1, densities.ndim))
    share = 1 - inner.sum(over) / densities.sum(over)
    worst = int(np.argmax(share))
    check(
        ~(share[worst] > MAX_AT_WALLS),
        f"low, high: the density must vanish at the walls, where cells hold {share[worst]:.3g} of its mass at "
        f"t = {float(ts[worst]):.4g}, more than {MAX_AT_WALLS}; take a larger box",
    )


def _check_rates(process, box, ts, max_steps):
    """Looks at drift and noise at the times, and between them where they are few, and counts the steps to be taken."""
    if not is_concrete((process, box, ts)):
        return
    ts = np.asarray(ts)
    fine = np.linspace(ts[:-1], ts[1:], max(_LOOKS // (len(ts) - 1), 1) + 1, axis=1).astype(ts.dtype)
    fastest, mixed = (np.asarray(x) for x in _at_times(process, box, jnp.asarray(fine.ravel())))
    finite, i = np.isfinite(fastest), int(np.argmin(np.isfinite(fastest)))
    check(finite, f"process: drift or noise is not finite on the box at t = {fine.ravel()[i]}")
    mixed = mixed.max()
    check(mixed == 0, f"process: noise must be diagonal, got off-diagonal entries of g g' up to {mixed}")
    fastest = fastest.reshape(fine.shape)
    steps = (np.minimum(fastest[:, 1:], fastest[:, :-1]) * np.diff(fine)).sum(1) / 0.9
    worst = int(np.argmax(steps))
    check(
        steps[worst] <= max_steps,
        f"cells: {box.cells} take at least {steps[worst]:.3g} steps between t = {ts[worst]:.4g} and "
        f"{ts[worst + 1]:.4g}, more than max_steps = {max_steps}{_REMEDY}",
    )


@eqx.filter_jit
def _at_times(process, box, ts):
    """(the fastest rate of leaving a cell, the largest off-diagonal entry of g g') at each of the times, [n] each."""
    x = cell_centres(box).reshape(-1, len(box.cells))

    def look(t):
        g = jnp.asarray(process.diffusion(x, t))
        squares = g @ jnp.swapaxes(g, -2, -1) if _is_matrix(g, x) else jnp.zeros((1, 1), x.dtype)
        mixed = jnp.where(jnp.eye(squares.shape[-1]) == 1, 0, squares)
        return _fastest((process, box), t), jnp.max(jnp.abs(mixed))

    return jax.lax.map(look, ts)


def _is_matrix(g, x):
    """Whether g is [d, d] or [n, d, d], with points x [n, d], of which there are more than d."""
    return g.ndim >= 2 and g.shape[-2:] == (x.shape[1], x.shape[1])


def _half_squares(process, x, t):
    """The diagonal D of g g'/2, [n, d], at points x [n, d]."""
    g = jnp.asarray(process.diffusion(x, t))
    squares = jnp.sum(g**2, axis=-1) if _is_matrix(g, x) else expand(g, x) ** 2
    return 0.5 * jnp.broadcast_to(squares, x.shape)


class _Positive(diffrax.AbstractStepSizeController):
    """Keeps a step where dt times the rate of leaving any cell is at most 1 at both of its ends."""

    def wrap(self, direction: Any) -> Any:
        return self

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, dt0: Any, args: Any, func: Any, error_order: Any) -> Any:
        longest = 0.9 / _fastest(args, t0)
        return jnp.minimum(t0 + longest, t1), longest

    def adapt_step_size(
        self,
        t0: Any,
        t1: Any,
        y0: Any,
        y1_candidate: Any,
        args: Any,
        y_error: Any,
        error_order: Any,
        controller_state: Any,
    ) -> Any:
        longest = 0.9 / _fastest(args, t1)
        keep = 0.9 * (t1 - t0) <= longest
        # Where the rates grow too fast, shorter; and from the same place.
        next_t0 = jnp.where(keep, t1, t0)
        dt = jnp.where(keep, longest, jnp.minimum(longest, 0.5 * (t1 - t0)))
        lost = ~(longest > 0)
        result = diffrax.RESULTS.where(lost, diffrax.RESULTS.dt_min_reached, diffrax.RESULTS.successful)
        return keep, next_t0, next_t0 + dt, False, longest, result


@eqx.filter_jit
def _solve(process, box, density0, ts, max_steps):
    """(densities [points, *cells], whether max_steps sufficed)."""

    def change(t, p, args):
        process, box = args
        p_dot = jnp.zeros_like(p)
        for axis, (right, left, surplus) in enumerate(_rates(process, box, t)):
            flux = right * slice_in_dim(p, 0, -1, axis=axis) - left * slice_in_dim(p, 1, None, axis=axis)
            flux = flux + _upwind(surplus, _slopes(p, axis), axis)
            p_dot = p_dot + _pad(flux, axis, 1, 0) - _pad(flux, axis, 0, 1)
        return p_dot

    def advance(p, span):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(change),
            diffrax.Heun(),
            t0=span[0],
            t1=span[1],
            dt0=None,
            y0=p,
            args=(process, box),
            stepsize_controller=_Positive(),
            max_steps=max_steps,
            adjoint=diffrax.ForwardMode(),
            throw=False,
        )
        enough = solution.result == diffrax.RESULTS.successful
        p = nan_unless(enough, jnp.asarray(solution.ys)[0])
        return p, (p, enough)

    _, (after, enough) = jax.lax.scan(advance, density0, jnp.stack([ts[:-1], ts[1:]], axis=1))
    return jnp.concatenate([density0[None], after]), jnp.all(enough)


def _rates(process, box, t):
    """For each axis (right, left, c), each [*faces] for the faces inside the box; c has the sign of u."""
    d, widths = len(box.cells), cell_widths(box)
    out = []
    for axis in range(d):
        places = [np.arange(1, n) if j == axis else np.arange(n) + 0.5 for j, n in enumerate(box.cells)]
        x = _points(box, *places)
        shape, x = x.shape[:-1], x.reshape(-1, d)
        along = jnp.zeros_like(x).at[:, axis].set(1)
        spread, slope = jax.jvp(lambda x: _half_squares(process, x, t), (x,), (along,))
        h = widths[axis]
        pull = (h * (process.drift(x, t) - slope)[:, axis]).reshape(shape)  # u h
        spread = spread[:, axis].reshape(shape)
        # D B(|z|), with |z| held below 100: beyond it nothing but u is left.
        z = jnp.abs(pull) / jnp.maximum(spread, 0.01 * jnp.abs(pull) + jnp.finfo(x.dtype).tiny)
        nonzero = jnp.where(z < 1e-6, 1.0, z)
        both = spread * jnp.where(z < 1e-6, 1 - z / 2, nonzero / jnp.expm1(nonzero))
        surplus = jnp.maximum(0.5 * jnp.abs(pull) - spread, 0) * jnp.sign(pull)
        rates = both + jnp.maximum(pull, 0), both + jnp.maximum(-pull, 0), surplus
        out.append(tuple(rate / h**2 for rate in rates))
    return out


def _slopes(p, axis):
    """The difference of p across each cell, [*cells], by van Leer: at most twice that to either neighbour."""
    steps = jnp.diff(p, axis=axis)
    below, above = slice_in_dim(steps, 0, -1, axis=axis), slice_in_dim(steps, 1, None, axis=axis)
    alike = below * above > 0
    return _pad(jnp.where(alike, 2 * below * above / jnp.where(alike, below + above, 1), 0), axis, 1, 1)


def _upwind(surplus, slopes, axis):
    """|c| times the slope of the cell that the drift comes from, [*faces]."""
    before, after = slice_in_dim(slopes, 0, -1, axis=axis), slice_in_dim(slopes, 1, None, axis=axis)
    return jnp.abs(surplus) * jnp.where(surplus > 0, before, after)


def _leaving(box, rates):
    """A bound on the rate of leaving each cell, [*cells]."""
    total = jnp.zeros(box.cells, rates[0][0].dtype)
    for axis, (right, left, surplus) in enumerate(rates):
        total = total + _pad(right + 2 * jnp.maximum(surplus, 0), axis, 0, 1)
        total = total + _pad(left + 2 * jnp.maximum(-surplus, 0), axis, 1, 0)
    return total


def _fastest(args, t):
    process, box = args
    return jnp.max(_leaving(box, _rates(process, box, t)))


def _pad(p, axis, before, after):
    return jnp.pad(p, [(before, after) if j == axis else (0, 0) for j in range(p.ndim)])
