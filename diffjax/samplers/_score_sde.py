"""Time reversed by a score, for any process: matrix noise, noise that depends on the state, no denoiser needed.

On the clock r = -t, with s(y, t) = grad log p_t(y), G the process's noise (`noise_operator`) and eta >= 0,

    dy = [ -f + (1 + eta^2)/2 (G G' s + div(G G')) ] dr + eta G dw,      div(G G')_i = sum_j d(G G')_ij/dy_j

All eta share the marginals p_t: 0 is the probability flow, 1 the reverse SDE. Ito, so diffrax's Ito solvers are meant
where G depends on y (`diffrax.Euler`; not Heun with noise).

    process, score --> score_flow | score_reverse_sde --> terms --> integrate --> Solution(x0, nfe, ok)

Source: Anderson 1982; Song et al. 2021, appendix A.
"""

from collections.abc import Callable
from typing import ClassVar

import diffrax
import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import PyTree
from typing_extensions import TypeAliasType

from diffjax._arrays import answered, at_once, check
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import Sample, Scalar, Time
from diffjax.process import AbstractProcess
from diffjax.samplers._solver_checks import AbstractField

TimeScore = TypeAliasType("TimeScore", Callable[[Sample, Time], Sample])
"""`(xt [b, *d], t []) -> grad log p_t(xt) [b, *d]`."""


class ScoreDrift(AbstractField):
    """The drift above, as diffrax calls it."""

    process: AbstractProcess
    score: TimeScore
    eta: Scalar

    evaluates: ClassVar[str] = "score"

    def __call__(self, r: Scalar, y: Sample, args: PyTree = None) -> Sample:
        noise = self.process.noise_operator(y, -r)
        pull = noise.mv(noise.transpose().mv(answered("score", self.score(y, -r), y.shape).astype(y.dtype)))
        pull = pull + self.process.noise_divergence(y, -r)
        return (0.5 * (1 + self.eta**2) * pull - self.process.drift(y, -r)).astype(y.dtype)


class ScoreDiffusion(eqx.Module):
    """eta G(y, t) as an operator, on the clock r = -t."""

    process: AbstractProcess
    eta: Scalar

    def __call__(self, r: Scalar, y: Sample, args: PyTree = None) -> lx.AbstractLinearOperator:
        return self.process.noise_operator(y, -r) * jnp.asarray(self.eta, y.dtype)


def score_flow(process: AbstractProcess, score: TimeScore) -> diffrax.ODETerm:
    """The probability flow of any process by its score, as a diffrax term on the clock r = -t, for states [b, *d].

    Args:
      process: the forward process.
      score: `(xt [b, *d], t []) -> grad log p_t(xt) [b, *d]`.

    Source: Song et al. 2021, eq. 17.
    """
    return diffrax.ODETerm(ScoreDrift(process, score, as_scalar("eta", 0.0)))


@checked_numbers
def score_reverse_sde(
    process: AbstractProcess, score: TimeScore, path: diffrax.AbstractBrownianPath, eta: Scalar = 1.0
) -> diffrax.MultiTerm:
    """The reverse SDE of any process by its score, as diffrax terms on the clock r = -t, for states [b, *d].

    Args:
      process: the forward process.
      score: `(xt [b, *d], t []) -> grad log p_t(xt) [b, *d]`, such as `make_hybrid_score` gives; a callable that is a
        pytree keeps its arrays as arguments of jit. `reverse_sde` is the same for a denoiser.
      path: the noise, usually `per_sample_path(key, b, shape)`.
      eta: how much noise, a scalar; 0 is the flow, 1 the reverse SDE.

    Raises:
      ValueError: eta is negative.

    Source: Anderson 1982; Song et al. 2021, eq. 16.
    """
    eta = as_scalar("eta", eta)
    with at_once(eta):
        check(eta >= 0, f"eta: must not be negative, got {eta}")
    drift = diffrax.ODETerm(ScoreDrift(process, score, eta))
    return diffrax.MultiTerm(drift, diffrax.ControlTerm(ScoreDiffusion(process, eta), path))
