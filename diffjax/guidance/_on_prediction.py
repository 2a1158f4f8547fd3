"""A guidance rule on what the network predicts, rather than on x0_hat.

With y = a x0 + b eps = (b xt - d x0)/sigma at fixed xt, d = alpha b - sigma a:

    y_cond, y_uncond --> rule --> y,      x0_hat = cond - (sigma/d) (y - y_cond)

The last form keeps every digit of `cond` at scale 1. `Linear` is the same on all predictions; rules that measure
lengths are not.
"""

from jaxtyping import Array

from diffjax._typing import Sample, Time
from diffjax.guidance._base import AbstractRule, aligned, both
from diffjax.parameterisation import AbstractParameterisation
from diffjax.process import AbstractGaussianProcess


class OnPrediction(AbstractRule):
    """A rule on eps, v, velocity, ... instead of x0_hat; t must lie inside `process.interval()`.

    Attributes:
      process: the forward process that t refers to.
      parameterisation: y, such as `VelocityPrediction()` for `OptimalScale` or `VPrediction()` for `Rescaled`.
      rule: what is done to y.
    """

    process: AbstractGaussianProcess
    parameterisation: AbstractParameterisation
    rule: AbstractRule

    def __call__(self, cond: Sample, uncond: Sample, scale: Array, xt: Sample, t: Time) -> Sample:
        cond, uncond = both(cond, uncond, xt)
        a, b = (aligned(c, xt) for c in self.parameterisation.coefficients(self.process, t))
        alpha, sigma = aligned(self.process.alpha(t), xt), aligned(self.process.sigma(t), xt)
        d = alpha * b - sigma * a
        y_cond, y_uncond = ((b * xt - d * x0) / sigma for x0 in (cond, uncond))
        return cond - (sigma / d) * (self.rule(y_cond, y_uncond, scale, xt, t) - y_cond)
