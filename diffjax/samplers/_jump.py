"""Steps of a flow map: from t to u by the map, then from u to s by fresh noise.

    xu = X(xt, t, u),   xs = alpha_{s|u} xu + sigma_{s|u} z,   sigma_{s|u} = gamma sigma_s

so that u <= s is where logsnr(u) = logsnr(s) - log(1 - gamma^2). gamma = 0: u = s, the map alone (pushforward);
gamma = 1: u = 0, a whole sample that is noised anew, the consistency sampler. The grid ends at t = 0, where X is the
sample: K steps are K evaluations.

Source: Kim et al. 2024 (Consistency trajectory models, arXiv 2310.02279), algorithm 3; Song et al. 2023 (Consistency
models, arXiv 2303.01469), algorithm 1.
"""

from functools import partial
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from diffjax._arrays import check, is_concrete, normal_like, values_at_once
from diffjax._typing import Denoiser, FlowMap, GridLike, Numbers, Sample, Scalar, Weights
from diffjax.parameterisation._denoiser import predict
from diffjax.process import (
    AbstractGaussianProcess,
    check_known,
    ddim_coefficients,
    is_flow_map,
)
from diffjax.samplers._ddim import optional_eta
from diffjax.samplers._stepper import AbstractStepper, ScheduleOnGrid, Step


class JumpWeights(NamedTuple):
    """xu = c_x xt + c_x0 A(xt, t, u), xs = growth xu + c_z z; each [n]."""

    u: Numbers
    c_x: Numbers
    c_x0: Numbers
    growth: Numbers | None = None
    c_z: Numbers | None = None
    """None, as `growth`, where nothing is drawn."""


class Jump(AbstractStepper):
    """Few-step sampling by a flow map, of a distilled run for example: one evaluation a step, and none at the end.

    As exact as its map: it has no order of convergence of its own.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> data, process = dj.Gaussian(jnp.zeros(1), 4.0), dj.Cosine()
    >>> xT = jnp.array([[1.0]])
    >>> print(dj.sample(None, process, dj.exact_flow_map(data, process), xT, jnp.array([1.0, 0.0]), dj.Jump()))
    [[2.]]

    Attributes:
      gamma: share of the noise at s that is fresh, in [0, 1]: 0 draws none, 1 is the consistency sampler. A map that
        knows s = 0 alone takes several steps with gamma = 1 only.

    Raises:
      ValueError: gamma is not in [0, 1]; in `sample`, the denoiser is no flow map (also a guided one: guidance belongs
        into the map, by its teacher or its training), or it does not know the steps of the grid.

    Source: Kim et al. 2024 (arXiv 2310.02279), algorithm 3.
    """

    order: ClassVar[int] = 0
    evaluations_per_step: ClassVar[int] = 1
    final_denoise: ClassVar[bool] = False

    gamma: Scalar | None = eqx.field(converter=partial(optional_eta, "gamma"), default=0.0)

    @values_at_once
    def __check_init__(self):
        if self.gamma is not None:
            check((self.gamma >= 0) & (self.gamma <= 1), f"gamma: must lie in [0, 1], got {self.gamma}")

    @property
    def stochastic(self) -> bool:
        return self.gamma is not None

    def check_denoiser(
        self, denoiser: Denoiser | FlowMap, process: AbstractGaussianProcess, ts: GridLike, weights: Weights
    ) -> None:
        """Raises `ValueError` where the denoiser is no flow map, or one that does not know the steps of a grid
        ts [n + 1]."""
        if not is_flow_map(denoiser):
            raise ValueError(
                f"denoiser: Jump needs a flow map F(xt, t, s), such as make_flow_map gives, got "
                f"{type(denoiser).__name__}; a guided one is none (guide its teacher, or train with guidance)"
            )
        knows = getattr(denoiser, "knows", "any")
        if is_concrete((ts, weights.u)):
            check_known(knows, np.asarray(ts)[:-1], np.asarray(weights.u))
        elif knows == "zero" and self.gamma is None and len(ts) > 2:  # whatever the times
            raise ValueError(
                f"gamma: a map that knows s = 0 alone takes several steps with gamma = 1 only, got 0 and {len(ts) - 1}"
            )

    def prepare(self, grid: ScheduleOnGrid) -> JumpWeights:
        ends = grid.alpha[:-1], grid.sigma[:-1]
        if self.gamma is None:
            return JumpWeights(grid.ts[1:], *ddim_coefficients(*ends, grid.alpha[1:], grid.sigma[1:]))
        u, alpha, sigma, growth, c_z = grid.evaluate(_middle, grid.ts[1:], self.gamma)
        return JumpWeights(u, *ddim_coefficients(*ends, alpha, sigma), growth, c_z)

    def step(self, denoiser: Denoiser | FlowMap, x: Sample, at: Step, state: None) -> tuple[Sample, None]:
        w = at.weights
        x = w.c_x * x + w.c_x0 * predict(denoiser, x, at.t, w.u)
        return (x if w.c_z is None else w.growth * x + w.c_z * normal_like(at.keys, x)), None


def _middle(process, s, gamma):
    """u where the fresh noise up to s begins, alpha and sigma there, and the kernel from u to s; each [n]."""
    inner = (gamma < 1) & (process.sigma(s) > 0)
    rest = -jnp.log1p(-(jnp.where(inner, gamma, 0.0) ** 2))
    l = process.logsnr(jnp.where(inner, s, 0.5)) + rest
    u = jnp.where(inner, jnp.clip(process.time_from_logsnr(l), 0.0, s), 0.0)
    moves = s > u
    growth, c_z = process.conditional(jnp.where(moves, s, 1.0), jnp.where(moves, u, 0.5))
    return u, process.alpha(u), process.sigma(u), jnp.where(moves, growth, 1.0), jnp.where(moves, c_z, 0.0)
