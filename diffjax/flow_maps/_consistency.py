"""Consistency models: a map X(xt, t, 0) to the data that is to be constant along the flow.

levels --> t, s < t;   x0, eps --> xt = alpha_t x0 + sigma_t eps --+--> X(xt, t, 0) --------------+
                                                                   |                              v
               training:     xs = alpha_s x0 + sigma_s eps         |             w(t, s) penalty(difference)
               distillation: xs = a step of the teacher from xt <--+                              ^
                              |                                                                   |
                              +--> X(xs, s, 0) of the target's parameters, stopped ---------------+

X is the flow map to t = 0, a step of DDIM with the network's answer A in it, never A itself, so that processes with
sigma(0) > 0 are right. Its boundary condition X(x, 0, 0) = x holds by construction, and anchors all other levels.

Its optimum depends on the levels. Under the square, training with N levels has the optimum of distillation from the
exact denoiser by Euler's method, for maps that are linear in x: the (N - 1)-step Euler sampler.

Source: Song et al. 2023 (Consistency models, arXiv 2303.01469), algorithms 2 and 3; Song & Dhariwal 2023 (Improved
techniques, arXiv 2310.14189); Geng et al. 2024 (ECT, arXiv 2406.14548).
"""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffjax._arrays import (
    answered,
    as_samples,
    at_once,
    check,
    check_key,
    check_time,
    expand,
    is_concrete,
    mean_features,
    time_dtype,
    values_at_once,
)
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import Cond, Denoiser, Index, Key, Params, Penalty, Sample, Scalar, Time
from diffjax.losses import mean_square
from diffjax.losses._denoising import draw_noise
from diffjax.parameterisation import AbstractParameterisation, ScorePrediction, apply_network, recover
from diffjax.parameterisation._denoiser import predict
from diffjax.parameterisation._diffusion import Diffusion
from diffjax.parameterisation._linear import EpsPrediction
from diffjax.process import AbstractGaussianProcess, is_flow_map, move
from diffjax.process._gaussian import perturb
from diffjax.samplers._heun import heun_step, heun_weights
from diffjax.samplers._stepper import Step

SOLVERS = ("euler", "heun", "map")


@checked_numbers
def consistency_loss(
    diffusion: Diffusion,
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    levels: Callable[..., tuple[Time, Time]],
    teacher: Denoiser | None = None,
    solver: str = "euler",
    target_params: Params | None = None,
    penalty: Penalty = mean_square,
    weighting: Callable[..., Time],
    index: Index | None = None,
    total: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """E[ w(t, s) penalty( X(xt, t, 0) - stop[X(xs, s, 0)] ) ] on a batch: consistency training, or distillation.

        CD    EDMLevels(process, 18), `unweighted`, teacher, solver="heun", target_params an average
        CT    EDMLevels(process, ct_levels(step, steps)), `unweighted`, target_params an average (`ct_decay`)
        iCT   EDMLevels(process, ict_levels(step, steps), lognormal=(-1.1, 2.0)), PseudoHuber(0.00054), OverGap()
        ECT   ECTLevels(LognormalTimes(process, -1.1, 2.0), stage), `root_mean_square`, `edm_weighting`, from the
              parameters of a trained denoiser

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import flow_maps, losses, networks
    >>> network = dj.from_linen(networks.MLP(width=8, depth=1))
    >>> x0 = jax.random.normal(jax.random.key(0), (4, 2))
    >>> params = network.init(jax.random.key(1), x0, jnp.zeros(4))
    >>> diffusion = dj.Diffusion(network, dj.EDM(), dj.parameterisation.EDMPrediction(0.5))
    >>> step = 100  # of training: it may be traced
    >>> levels = flow_maps.EDMLevels(diffusion.process, flow_maps.ict_levels(step, 8000), lognormal=(-1.1, 2.0))
    >>> loss, aux = flow_maps.consistency_loss(
    ...     diffusion, params, jax.random.key(2), x0, levels=levels,
    ...     penalty=losses.PseudoHuber(0.00054), weighting=flow_maps.OverGap())
    >>> F = dj.make_flow_map(diffusion, params, knows="zero")  # sample(..., Jump(gamma=1.0)) takes it

    Args:
      diffusion: network, process and parameterisation; the network is given t alone, and called with a key, so dropout
        is on, with the same key for both answers.
      params: the network's parameters.
      key: for times, noise and dropout; the noise of sample i uses `fold_in(eps_key, index_i)`.
      x0: data [b, *d].
      cond: conditions, a pytree of [b, ...], or None; a teacher has its own.
      levels: `(key, n, *, index, total) -> (t [n], s [n])` with s < t, such as `EDMLevels(process, 18)`.
      teacher: a denoiser D(xt, t) of the same process, whose step from xt leads to xs (distillation); None: xs has the
        x0 and eps of xt (training).
      solver: of the teacher's step, "euler" (DDIM's) or "heun"; or "map", where the teacher is a flow map.
      target_params: parameters of the target, such as an average; None: `params`, as in iCT. Never differentiated.
      penalty: `difference [b, *d] -> [b]`.
      weighting: `(process, parameterisation, t, s) -> w [b]`, of the penalty of X itself, such as `OverGap()`.
      index: global indices [b] of the samples (default 0 .. b - 1).
      total: the size of the global batch (default b), for levels that need it.

    Returns:
      The loss, a scalar, and `{"t": [b], "s": [b], "per_sample": [b]}`: the times and the weighted penalties.

    Raises:
      ValueError: a shape does not fit, s exceeds t, the network predicts eps or the score, the teacher is of another
        process, or the solver is unknown.

    Source: Song et al. 2023, algorithms 2 and 3; Song & Dhariwal 2023, section 3.
    """
    check_key(key)
    x0 = as_samples("x0", x0)
    n = x0.shape[0]
    level_key, eps, network_key, index = draw_noise(key, x0, index)
    if not callable(levels):
        raise ValueError(f"levels: a callable is needed, such as GridLevels(ts) or EDMLevels(process, n), got {levels}")
    t, s = levels(level_key, n, index=index, total=n if total is None else total)
    t, s = (answered("levels", time, (n,)).astype(time_dtype(x0)) for time in (t, s))
    per_sample = per_sample_consistency(
        diffusion,
        params,
        x0,
        eps,
        t,
        s,
        cond,
        teacher=teacher,
        solver=solver,
        target_params=target_params,
        penalty=penalty,
        weighting=weighting,
        key=network_key,
    )
    return jnp.mean(per_sample), {"t": t, "s": s, "per_sample": per_sample}


def per_sample_consistency(
    diffusion: Diffusion,
    params: Params,
    x0: Sample,
    eps: Sample,
    t: Time,
    s: Time,
    cond: Cond = None,
    *,
    teacher: Denoiser | None = None,
    solver: str = "euler",
    target_params: Params | None = None,
    penalty: Penalty = mean_square,
    weighting: Callable[..., Time],
    key: Key | None = None,
) -> Float[Array, " b"]:
    """The consistency loss of given noise eps [b, *d] and times t > s, each [b]: w(t, s) penalty(difference), [b].

    See `consistency_loss` for the arguments. `key` is the network's, None to evaluate.
    """
    x0 = as_samples("x0", x0)
    eps = as_samples("eps", eps, x0.shape)
    check_time(t, x0)
    check_time(s, x0, "s")
    with at_once(s, t):
        check(jnp.asarray(s) <= jnp.asarray(t), f"s: a consistency model goes from t to s <= t, got t = {t}, s = {s}")
    t, s = (jnp.broadcast_to(jnp.asarray(time, time_dtype(x0)), x0.shape[:1]) for time in (t, s))
    check_consistency(diffusion)
    process = diffusion.process
    xt = perturb(process, x0, eps, t)
    if teacher is None:
        xs = perturb(process, x0, eps, s)
    else:
        xs = _teacher_step(process, teacher, solver, xt, t, s)
    sample = _sample(diffusion, params, xt, t, cond, key)
    # X(x, 0, 0) = x also where the network's answer at t = 0 is not finite.
    moves = s > 0
    moved = _sample(
        diffusion, params if target_params is None else target_params, xs, jnp.where(moves, s, t), cond, key
    )
    difference = sample - jax.lax.stop_gradient(jnp.where(expand(moves, xs), moved, xs))
    each = answered("penalty", penalty(difference), x0.shape[:1])
    return answered("weighting", weighting(process, diffusion.parameterisation, t, s), x0.shape[:1]) * each


def _sample(diffusion, params, xt, t, cond, key):
    """X(xt, t, 0), [b, *d], for t > 0."""
    y = answered("network", apply_network(diffusion, params, xt, t, cond, key=key), xt.shape)
    average = recover(diffusion.parameterisation, diffusion.process, y, xt, t)[0]
    return move(diffusion.process, xt, t, jnp.zeros_like(t), average)


def _teacher_step(process, teacher, solver, xt, t, s):
    """xs [b, *d]: where the teacher goes from xt in one step."""
    if solver not in SOLVERS:
        raise ValueError(f"solver: one of {', '.join(SOLVERS)} is needed, got {solver!r}")
    check_teacher(teacher, process)
    if solver == "map":
        if not (is_flow_map(teacher) and hasattr(teacher, "move")):
            raise ValueError(
                f"teacher: solver='map' needs a flow map, such as make_flow_map gives, got {type(teacher).__name__}; "
                "a denoiser takes 'euler' or 'heun'"
            )
        return answered("teacher", teacher.move(xt, t, s), xt.shape)
    if solver == "euler":
        return move(process, xt, t, s, predict(teacher, xt, t))
    weights = heun_weights(jnp, *((process.alpha(time), process.sigma(time)) for time in (t, s)))
    return heun_step(teacher, xt, Step(t, s, jax.tree.map(lambda weight: expand(weight, xt), weights)))[0]


def check_teacher(teacher: object, process: AbstractGaussianProcess) -> None:
    """Raises `ValueError` where a teacher is no denoiser, or is known to be one of another process."""
    if not callable(teacher):
        raise ValueError(f"teacher: a denoiser D(xt, t) is needed, got {type(teacher).__name__}")
    own = getattr(teacher, "process", getattr(getattr(teacher, "diffusion", None), "process", None))
    if not isinstance(own, AbstractGaussianProcess):
        return
    same = jax.tree.structure(own) == jax.tree.structure(process)
    if same and is_concrete((own, process)):
        pairs = zip(jax.tree.leaves(own), jax.tree.leaves(process), strict=True)
        same = all(np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-6) for a, b in pairs)
    if not same:
        theirs, students = (eqx.tree_pformat(each, short_arrays=False, width=10_000) for each in (own, process))
        raise ValueError(
            f"teacher: it is a denoiser of {theirs}, whose times are not those of the student's {students}; "
            "retime(teacher, its process, the student's process) makes one of it"
        )


def check_consistency(diffusion: Diffusion) -> None:
    """Raises `ValueError` where a network's answer says nothing of x0 at t = 1."""
    p = diffusion.parameterisation
    if isinstance(p, EpsPrediction | ScorePrediction):
        raise ValueError(
            f"parameterisation: {type(p).__name__} says nothing of x0 at t = 1, where sampling begins; take "
            "EDMPrediction (defined everywhere), VPrediction or X0Prediction"
        )


def unweighted(
    process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time, s: Time
) -> Float[Array, " b"]:
    """w = 1, of the shape of t. Source: Song et al. 2023, section 6.1."""
    return jnp.ones_like(t)


class OverGap(eqx.Module):
    """w = a_t a_s/(sigma_t alpha_s - alpha_t sigma_s), a = max(alpha, sigma/sigma_max).

    It is iCT's 1/(t - s) in EDM's clock, 1/(sigma_t/alpha_t - sigma_s/alpha_s), up to sigma/alpha = sigma_max. Beyond,
    where that would fall to 0 as alpha does, it stays near 1/sigma_max.

    Attributes:
      sigma_max: sigma/alpha from which on the weight falls no further; positive.

    Raises:
      ValueError: sigma_max is not positive.

    Source: Song & Dhariwal 2023, section 3.3.
    """

    sigma_max: Scalar = eqx.field(converter=partial(as_scalar, "sigma_max"), default=80.0)

    @values_at_once
    def __check_init__(self):
        check(self.sigma_max > 0, f"sigma_max: must be positive, got {self.sigma_max}")

    def __call__(
        self, process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time, s: Time
    ) -> Float[Array, " b"]:
        alpha_t, sigma_t, alpha_s, sigma_s = process.alpha(t), process.sigma(t), process.alpha(s), process.sigma(s)
        a_t, a_s = (jnp.maximum(a, b / self.sigma_max) for a, b in ((alpha_t, sigma_t), (alpha_s, sigma_s)))
        return a_t * a_s / (sigma_t * alpha_s - alpha_t * sigma_s)


def edm_weighting(
    process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time, s: Time
) -> Float[Array, " b"]:
    """w = (alpha/sigma)^2 + 1/data_std^2, of the shape of t: ECT's, which is EDM's weight of the error of x0.

    data_std is the parameterisation's. Source: Geng et al. 2024, section 3; Karras et al. 2022, table 1.
    """
    return jnp.exp(process.logsnr(t)) + 1 / parameterisation.data_std**2


def root_mean_square(error: Sample) -> Float[Array, " b"]:
    """sqrt(mean_features(error^2)), [b, *d] -> [b]: ECT's penalty, 1/sqrt(d) of its norm; the gradient at 0 is 0.

    Its optimum is no mean but a median. Source: Geng et al. 2024, section 3.
    """
    error = as_samples("error", error)
    m = mean_features(error**2)
    apart = m > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, m, 1.0)), 0.0)
