"""Samplers: from noise to data, by a scan of our own or by diffrax.

xT ~ prior --> sample(stepper)                        lax.scan over a grid  -+-> x0
           --> integrate(flow | reverse_sde)          diffrax, r = -t       -+
"""

from diffjax.process import per_sample_path as per_sample_path
from diffjax.samplers._base import (
    AbstractEmbeddedStepper as AbstractEmbeddedStepper,
    AbstractStepper as AbstractStepper,
    Schedule as Schedule,
    on_grid as on_grid,
    sample as sample,
    schedule as schedule,
)
from diffjax.samplers._ddim import DDIM as DDIM
from diffjax.samplers._diffrax import (
    Solution as Solution,
    as_diffrax_solver as as_diffrax_solver,
    count_evaluations as count_evaluations,
    integrate as integrate,
    probability_flow as probability_flow,
    reverse_sde as reverse_sde,
    velocity as velocity,
)
from diffjax.samplers._dpmpp import DPMpp2M as DPMpp2M
from diffjax.samplers._heun import Heun as Heun
from diffjax.samplers._score_sde import score_flow as score_flow, score_reverse_sde as score_reverse_sde
