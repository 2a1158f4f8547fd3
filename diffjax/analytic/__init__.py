"""Exact truth: data whose score, denoiser, log density and flow are known."""

from diffjax.analytic._base import (
    AbstractDistribution as AbstractDistribution,
    ExactDenoiser as ExactDenoiser,
    exact_denoiser as exact_denoiser,
)
from diffjax.analytic._empirical import Empirical as Empirical
from diffjax.analytic._fokker_planck import (
    Box as Box,
    cell_averages as cell_averages,
    cell_centres as cell_centres,
    cell_widths as cell_widths,
    fokker_planck as fokker_planck,
)
from diffjax.analytic._gaussian import Gaussian as Gaussian, flow_map as flow_map
from diffjax.analytic._mixture import GaussianMixture as GaussianMixture
