"""Exact truth: data whose score, denoiser, log density and flow are known."""

from diffjax.analytic._base import AbstractDistribution as AbstractDistribution, ExactDenoiser as ExactDenoiser
from diffjax.analytic._empirical import Empirical as Empirical
from diffjax.analytic._flow_map import ExactFlowMap as ExactFlowMap, quantile_flow as quantile_flow
from diffjax.analytic._fokker_planck import (
    Box as Box,
    cell_averages as cell_averages,
    cell_centres as cell_centres,
    cell_widths as cell_widths,
    fokker_planck as fokker_planck,
)
