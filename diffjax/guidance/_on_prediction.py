"""A guidance rule on what the network predicts, rather than on x0_hat.

With y = a x0 + b eps = (b xt - d x0)/sigma at fixed xt, d = alpha b - sigma a:

    y_good, y_bad --> rule --> y,      x0_hat = good - (sigma/d) (y - y_good)

The last form keeps every digit of `good` at scale 1. `Linear` is the same on all predictions; rules that measure
lengths are not.
"""

from typing import Any

from diffjax._typing import Sample, Time
from diffjax.guidance._base import AbstractRule, beside
from diffjax.parameterisation import AbstractParameterisation
from diffjax.process import AbstractGaussianProcess


class OnPrediction(AbstractRule):
    """A rule on eps, v, velocity, ... instead of x0_hat; t must lie inside `interval(process)`.

    Attributes:
      process: the forward process that t refers to.
      parameterisation: y, such as `VelocityPrediction()` for `OptimalScale` or `VPrediction()` for `Rescaled`.
      rule: what is done to y.
    """

    process: AbstractGaussianProcess
    parameterisation: AbstractParameterisation
    rule: AbstractRule

    def __call__(self, good: Sample, bad: Sample, scale: Any, xt: Sample, t: Time) -> Sample:
        a, b = (beside(c, xt) for c in self.parameterisation.coefficients(self.process, t))
        alpha, sigma = beside(self.process.alpha(t), xt), beside(self.process.sigma(t), xt)
        d = alpha * b - sigma * a
        y_good, y_bad = ((b * xt - d * x0) / sigma for x0 in (good, bad))
        return good - (sigma / d) * (self.rule(y_good, y_bad, scale, xt, t) - y_good)
