"""Progressive distillation: one DDIM step of the student lands where several steps of its teacher do.

    K student steps, n of the teacher's in each:     t = u_0 > u_1 > ... > u_n = s
    teacher from xt:   x_j = D(xu_j, u_j),   xu_{j+1} = DDIM(xu_j, x_j; u_j -> u_{j+1})
    target:            x0~ = sum_j share_j x_j   with   DDIM(xt, x0~; t -> s) = xu_n

In y = x/sigma and w = alpha/sigma a DDIM step is dy = x_j dw, so that the target is the mean of the x_j over w:

    share_j = (w_{j+1} - w_j)/(w_n - w_0) = e^(l_{j+1} - l_n) (-expm1(-h_j))/(-expm1(l_0 - l_n)),   h_j = l_{j+1} - l_j

with l = log w, half of logsnr. The mean is convex, and has no difference of nearly equal numbers: the quotient
(xs - c_x xt)/c_x0, which is the same, loses three digits in float32 at a thousand steps. Where alpha_t = 0 or
sigma_s = 0 some h_j is infinite, and the shares are their limits.

data --> xt --+--> n teacher steps --> x0~, eps~ = (xt - alpha x0~)/sigma --+
              +--> student, given t alone -----------------------------------+--> denoising loss of the pair x0~, eps~

Stages halve the grid, and each student is the next one's teacher. At the end a student of K steps is the DDIM sampler
of the first teacher, with all of its steps: the same map from noise to data.

Source: Salimans & Ho 2022 (Progressive distillation, arXiv 2202.00512), algorithm 2 and appendix G; several teacher
steps at once by the mean above.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from diffjax._arrays import answered, as_samples, check_key, expand, is_concrete, time_dtype
from diffjax._numbers import checked_numbers
from diffjax._typing import Cond, Grid, Index, Key, Params, Sample, Time
from diffjax.losses import draw_steps, per_sample_loss
from diffjax.losses._denoising import draw_noise
from diffjax.parameterisation import AbstractParameterisation, ScorePrediction
from diffjax.parameterisation._diffusion import Diffusion
from diffjax.parameterisation._linear import EpsPrediction
from diffjax.process import AbstractGaussianProcess, Dyadic, check_known, ddim_coefficients, is_flow_map
from diffjax.process._gaussian import perturb
from diffjax.samplers import schedule_on_grid

FineGrid: TypeAlias = Float[Array, " fine"] | Float[np.ndarray, " fine"]  # next to a `Grid`, of another length

_SAME = 1e-6  # times of two grids are compared in float32


def truncated_snr(process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
    """w = max(1, e^-lambda) on the eps-loss, of the shape of t: max(snr, 1) on the x0-loss.

    Source: Salimans & Ho 2022, eq. 9.
    """
    return jnp.maximum(1.0, jnp.exp(-process.logsnr(t)))


@checked_numbers
def progressive_loss(
    diffusion: Diffusion,
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    teacher: Any,
    grid: Grid,
    teacher_steps: int = 2,
    teacher_grid: FineGrid | None = None,
    weighting: Callable[..., Time] = truncated_snr,
    index: Index | None = None,
    total: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """E[ w(t) mean_features (x0~ - x0_hat)^2 ] over the steps of a grid, x0~ being `progressive_target` of xt.

    The target is a function of xt, so that the loss of a perfect student is 0. Sample the student by `Jump` on the same
    grid, as `make_flow_map(diffusion, params, cond, knows=grid)`; then it is the teacher of `halve_grid(grid)`. The
    next teacher is the trained weights themselves: an average of them mixes stages.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import flow_maps, networks
    >>> network, process = dj.from_linen(networks.MLP(width=8, depth=1)), dj.Cosine()
    >>> x0 = jax.random.normal(jax.random.key(0), (4, 2))
    >>> params = network.init(jax.random.key(1), x0, jnp.zeros(4))
    >>> diffusion = dj.Diffusion(network, process, dj.VPrediction())
    >>> teacher, grid = dj.make_denoiser(diffusion, params), jnp.linspace(1.0, 0.0, 9)
    >>> loss, _ = flow_maps.progressive_loss(diffusion, params, jax.random.key(2), x0, teacher=teacher, grid=grid)
    >>> grid = flow_maps.halve_grid(grid)  # of the next stage, whose teacher is:
    >>> teacher = dj.make_flow_map(diffusion, params, knows=jnp.linspace(1.0, 0.0, 9))
    >>> loss, _ = flow_maps.progressive_loss(diffusion, params, jax.random.key(2), x0, teacher=teacher, grid=grid)

    Args:
      diffusion: the student: network, process and parameterisation, of any kind but eps and score. The network is given
        t alone, and called with a key, so dropout is on.
      params: the student's parameters; take the teacher's to begin with.
      key: for times, noise and dropout; the noise of sample i uses `fold_in(eps_key, index_i)`.
      x0: data [b, *d].
      cond: conditions, a pytree of [b, ...], or None. The teacher has its own.
      teacher: a denoiser `(xt, t) -> x0_hat`, also a guided one, moved by DDIM's steps; or a flow map, moved by its
        own. It must be deterministic, and defined at the grid's first time: eps predictions are not where alpha = 0.
      grid: the student's times [K + 1], which descend to 0, known before tracing; t is uniform over the first K.
      teacher_steps: n, the teacher's steps in one of the student's.
      teacher_grid: the teacher's times [K n + 1], every n-th of which is the grid's. Default: those of a flow map that
        knows a grid; else n equal steps in t.
      weighting: `(process, parameterisation, t) -> w`, on the eps-loss: `truncated_snr` is max(snr, 1) on the x0-loss,
        `losses.on_v` snr + 1.
      index: global indices [b] of the samples (default 0 .. b - 1).
      total: the size of the global batch (default b), over which the steps are spread evenly.

    Returns:
      The loss, a scalar, and `{"t": [b], "per_sample": [b]}`: the times and the weighted loss of each sample.

    Raises:
      ValueError: the student predicts eps or the score, and as `progressive_target`.

    Source: Salimans & Ho 2022, algorithm 2.
    """
    check_key(key)
    x0 = as_samples("x0", x0)
    check_predicts_x0(diffusion)
    process, n = diffusion.process, x0.shape[0]
    times = _as_grid("grid", grid)
    k_key, eps, network_key, index = draw_noise(key, x0, index)
    k = draw_steps(k_key, times.size - 1, index, n if total is None else total)
    t = jnp.asarray(times, time_dtype(x0))[k]
    xt = jax.lax.stop_gradient(perturb(process, x0, eps, t))
    target = progressive_target(
        process, teacher, xt, k, grid=times, teacher_steps=teacher_steps, teacher_grid=teacher_grid
    )
    alpha, sigma = expand(process.alpha(t), xt), expand(process.sigma(t), xt)
    pair = jax.lax.stop_gradient((target, (xt - alpha * target) / sigma))
    per_sample = per_sample_loss(diffusion, params, *pair, t, cond, weighting=weighting, key=network_key)
    return jnp.mean(per_sample), {"t": t, "per_sample": per_sample}


@checked_numbers
def progressive_target(
    process: AbstractGaussianProcess,
    teacher: Any,
    xt: Sample,
    k: int | Shaped[Array, "..."] | Shaped[np.ndarray, "..."],
    *,
    grid: Grid,
    teacher_steps: int = 2,
    teacher_grid: FineGrid | None = None,
) -> Sample:
    """x0~ [b, *d]: with it one DDIM step from grid[k] to grid[k + 1] lands where the teacher's n steps do.

        x0~ = sum_j share_j D(xu_j, u_j)

    the mean of the teacher's answers on its way, with shares by half logsnr, in float64 on the host. It is the average
    denoiser of the teacher's steps, for any process; no gradient passes.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import flow_maps, process
    >>> teacher, grid = dj.exact_denoiser(dj.Gaussian(jnp.zeros(1), 4.0), dj.Cosine()), jnp.array([1.0, 0.0])
    >>> xt, k = jnp.array([[1.0]]), jnp.array([0])
    >>> target = flow_maps.progressive_target(dj.Cosine(), teacher, xt, k, grid=grid, teacher_steps=4)
    >>> print(f"{process.move(dj.Cosine(), xt, 1.0, 0.0, target).item():.3f}")
    1.334
    >>> print(f"{dj.sample(None, dj.Cosine(), teacher, xt, jnp.linspace(1.0, 0.0, 5), dj.DDIM()).item():.3f}")
    1.334

    Args:
      process: the forward process that the times refer to.
      teacher: as `progressive_loss`'s.
      xt: states [b, *d] at grid[k].
      k: the student's step, whole numbers [] or [b] in 0 .. K - 1.
      grid: the student's times [K + 1].
      teacher_steps: as `progressive_loss`'s.
      teacher_grid: as `progressive_loss`'s.

    Raises:
      ValueError: a grid is traced, does not descend to 0 in [0, 1] or, the teacher's, does not contain the student's;
        k is not as above; the teacher takes a key, does not know the steps, or answers another shape.

    Source: Salimans & Ho 2022, appendix G.
    """
    xt = as_samples("xt", xt)
    if jnp.shape(k) not in ((), xt.shape[:1]) or not jnp.issubdtype(jnp.result_type(k), jnp.integer):
        raise ValueError(f"k: whole numbers of shape () or {xt.shape[:1]} are needed, got {k!r}")
    x = jax.lax.stop_gradient(xt).astype(jnp.result_type(xt, time_dtype(xt)))
    steps = _teacher_steps(process, teacher, _as_grid("grid", grid), teacher_steps, teacher_grid)
    of_samples = lambda table: jnp.asarray(table, x.dtype)[jnp.broadcast_to(k, x.shape[:1])].T
    own_steps = is_flow_map(teacher)

    def step(carry, at):
        x, mean = carry
        x0_hat = answered("teacher", teacher(x, at.t, at.s) if own_steps else teacher(x, at.t), x.shape).astype(x.dtype)
        c_x, c_x0, share = (expand(c, x) for c in (at.c_x, at.c_x0, at.share))
        return (c_x * x + c_x0 * x0_hat, mean + share * x0_hat), None

    mean = jax.lax.scan(step, (x, jnp.zeros_like(x)), jax.tree.map(of_samples, steps))[0][1]
    return jax.lax.stop_gradient(mean)


def halve_grid(grid: FineGrid) -> Grid:
    """Every other time of a grid [K + 1], [K/2 + 1]: the student's whose teacher has steps on this one.

    >>> from diffjax.flow_maps import halve_grid
    >>> import numpy as np
    >>> print(halve_grid(np.array([1.0, 0.75, 0.5, 0.25, 0.0])))
    [1.  0.5 0. ]

    Raises:
      ValueError: the number of steps is odd, as that of a single one.
    """
    if jnp.ndim(grid) != 1 or jnp.size(grid) < 3 or jnp.size(grid) % 2 == 0:
        steps = jnp.size(grid) - 1
        raise ValueError(
            f"grid: an even number of steps is needed, [K + 1] times, got {steps}; begin with a power of two, or take "
            f"other grids one of which contains the other"
        )
    return grid[::2]


def check_predicts_x0(diffusion: Diffusion) -> None:
    """Raises `ValueError` where a network's answer says nothing of x0 at t = 1, where few-step sampling begins."""
    p = diffusion.parameterisation
    if isinstance(p, EpsPrediction | ScorePrediction):
        raise ValueError(
            f"diffusion: {type(p).__name__} says nothing of x0 where alpha = 0; take VPrediction, X0Prediction or "
            f"EDMPrediction"
        )


class _TeacherSteps(NamedTuple):
    """The teacher's n steps in each of the student's K, [K, n] each."""

    t: Array
    s: Array
    c_x: Array
    c_x0: Array
    share: Array


def _teacher_steps(process, teacher, grid, n, teacher_grid):
    """The teacher's steps on a student's grid [K + 1], after all checks."""
    _check_teacher(teacher)
    knows = getattr(teacher, "knows", None)
    if teacher_grid is None and isinstance(knows, tuple) and not isinstance(knows, Dyadic):
        teacher_grid = knows
    fine = _refined(grid, n, teacher_grid)
    if knows is not None:
        check_known(knows, fine[:-1], fine[1:])
    at = schedule_on_grid(process, fine)
    c_x, c_x0 = ddim_coefficients(at.alpha[:-1], at.sigma[:-1], at.alpha[1:], at.sigma[1:])
    h = at.xp.reshape(at.half_logsnr[1:] - at.half_logsnr[:-1], (-1, n))
    to_end = at.xp.cumsum(h[:, ::-1], axis=1)[:, ::-1]
    after = at.xp.concatenate([to_end[:, 1:], at.xp.zeros_like(h[:, :1])], axis=1)
    share = at.xp.exp(-after) * at.xp.expm1(-h) / at.xp.expm1(-to_end[:, :1])
    return _TeacherSteps(*(at.xp.reshape(part, (-1, n)) for part in (fine[:-1], fine[1:], c_x, c_x0, share)))


def _as_grid(name, grid):
    """Times [K + 1] in float64 on the host."""
    if not is_concrete(grid):
        raise ValueError(f"{name}: the times must be known before tracing; keep them out of jit's arguments")
    times = np.asarray(grid, np.float64)
    if times.ndim != 1 or times.size < 2 or not np.all(np.diff(times) < 0) or times[0] > 1 or times[-1] != 0:
        raise ValueError(
            f"{name}: two or more times are needed that descend from at most 1 to 0, such as "
            f"uniform_grid(process, K, ends=(1.0, 0.0)), got {grid}"
        )
    return times


def _refined(grid, n, teacher_grid):
    """The teacher's times [K n + 1] for a student's [K + 1]."""
    if n < 1:
        raise ValueError(f"teacher_steps: at least 1 is needed, got {n}")
    if teacher_grid is None:
        within = grid[:-1, None] + np.arange(n) / n * np.diff(grid)[:, None]
        return np.append(within.ravel(), grid[-1])
    fine = _as_grid("teacher_grid", teacher_grid)
    if fine.size != n * (grid.size - 1) + 1 or np.any(np.abs(fine[::n] - grid) > _SAME):
        raise ValueError(
            f"teacher_grid: it must contain the student's grid, one in every {n} of its times "
            f"(teacher_steps = {n}), got {fine.size - 1} steps for the student's {grid.size - 1}; "
            f"halve_grid(teacher_grid) is such a grid for 2"
        )
    return fine


def _check_teacher(teacher):
    if not callable(teacher):
        raise ValueError(
            f"teacher: a denoiser (xt, t) -> x0_hat or a flow map is needed, got {type(teacher).__name__}; its "
            f"deterministic steps are taken here, without a sampler"
        )
    try:
        taken = set(inspect.signature(teacher).parameters)
    except (TypeError, ValueError):
        return
    if drawn := sorted(taken & {"key", "keys", "rng"}):
        raise ValueError(
            f"teacher: it must be deterministic, so that one state has one target, got one that takes {drawn[0]!r}; "
            f"take a denoiser (xt, t) -> x0_hat without dropout, as of make_denoiser"
        )
