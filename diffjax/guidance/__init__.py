"""Guidance: from denoiser to denoiser, for any sampler and any network.

classifier_free, extrapolate              two answers and a rule: Linear, Rescaled, Projected (APG), OptimalScale
OnPrediction                              a rule on eps, v or velocity instead of x0_hat
within_interval, zero_init                at some noise levels only
classifier_guidance                       a classifier's gradient
static_threshold, dynamic_threshold       x0_hat clipped to the data's range, at every step of any sampler
product, negation, density_mixture        densities composed
dps, pigdm, tmpd, proximal                an observation y = A(x0) + noise: inverse problems
"""

from diffjax.guidance._base import (
    AbstractGuide as AbstractGuide,
    AbstractRule as AbstractRule,
    Guided as Guided,
    Linear as Linear,
)
from diffjax.guidance._cfg_zero import OptimalScale as OptimalScale, zero_init as zero_init
from diffjax.guidance._classifier import classifier_guidance as classifier_guidance
from diffjax.guidance._classifier_free import OnePass as OnePass
from diffjax.guidance._dps import dps as dps, dps_normalised as dps_normalised
from diffjax.guidance._extrapolate import TwoPasses as TwoPasses, extrapolate as extrapolate
from diffjax.guidance._interval import within_interval as within_interval
from diffjax.guidance._mixture import density_mixture as density_mixture
from diffjax.guidance._on_prediction import OnPrediction as OnPrediction
from diffjax.guidance._pigdm import pigdm as pigdm, proximal as proximal
from diffjax.guidance._posterior import AbstractPosterior as AbstractPosterior
from diffjax.guidance._product import Product as Product, negation as negation, product as product
from diffjax.guidance._projected import Projected as Projected
from diffjax.guidance._rescaled import Rescaled as Rescaled
from diffjax.guidance._threshold import dynamic_threshold as dynamic_threshold, static_threshold as static_threshold
from diffjax.guidance._tmpd import tmpd as tmpd
from diffjax.guidance._truncated_cg import TruncatedCG as TruncatedCG
