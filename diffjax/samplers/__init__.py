"""Samplers: from noise to data, by a scan of our own or by diffrax.

xT ~ prior --> sample(stepper)                        lax.scan over a grid  -+-> x0
           --> integrate(flow | reverse_sde)          diffrax, r = -t       -+
"""

from diffjax.samplers._adams import DEIS as DEIS, IPNDM as IPNDM, LMS as LMS
from diffjax.samplers._ancestral import (
    DPM2Ancestral as DPM2Ancestral,
    DPMpp2SAncestral as DPMpp2SAncestral,
    EulerAncestral as EulerAncestral,
)
from diffjax.samplers._annealed import annealed_langevin as annealed_langevin
from diffjax.samplers._cfgpp import CFGpp as CFGpp
from diffjax.samplers._chains import Chains as Chains
from diffjax.samplers._churn import Churn as Churn
from diffjax.samplers._corrected import LangevinCorrected as LangevinCorrected
from diffjax.samplers._ddim import Coefficients as Coefficients
from diffjax.samplers._diffrax import (
    Solution as Solution,
    count_evaluations as count_evaluations,
    integrate_each as integrate_each,
    velocity as velocity,
)
from diffjax.samplers._dpm_solver import DPMpp2S as DPMpp2S, DPMSolver as DPMSolver
from diffjax.samplers._dpmpp import DPMpp3M as DPMpp3M, DPMpp3MPublished as DPMpp3MPublished
from diffjax.samplers._euler import Euler as Euler
from diffjax.samplers._exponential_adams import (
    ExponentialAdams as ExponentialAdams,
    by_logsnr as by_logsnr,
    by_noise as by_noise,
    by_time as by_time,
)
from diffjax.samplers._langevin import density_score as density_score, hmc as hmc, mala as mala
from diffjax.samplers._multistep import (
    AbstractMultistep as AbstractMultistep,
    Correction as Correction,
    Memory as Memory,
    MultistepWeights as MultistepWeights,
)
from diffjax.samplers._optimised_grid import optimise_grid as optimise_grid
from diffjax.samplers._predictor_corrector import PredictorCorrector as PredictorCorrector
from diffjax.samplers._recommended import recommended as recommended
from diffjax.samplers._restart import Restart as Restart, sample_with_restarts as sample_with_restarts
from diffjax.samplers._score_sde import score_flow as score_flow, score_reverse_sde as score_reverse_sde
from diffjax.samplers._sde_dpmpp import DPMppSDE as DPMppSDE, SDEDPMpp2M as SDEDPMpp2M, SDEDPMpp3M as SDEDPMpp3M
from diffjax.samplers._seeds import SEEDS2 as SEEDS2, SEEDS3 as SEEDS3
from diffjax.samplers._sgld import (
    log_posterior as log_posterior,
    minibatch_score as minibatch_score,
    polynomial_decay as polynomial_decay,
    sgld as sgld,
)
from diffjax.samplers._stepper import (
    AbstractEmbeddedStepper as AbstractEmbeddedStepper,
    AbstractStepper as AbstractStepper,
    ScheduleOnGrid as ScheduleOnGrid,
    Step as Step,
    memory_like as memory_like,
    on_grid as on_grid,
    schedule_on_grid as schedule_on_grid,
    step_weights as step_weights,
)
from diffjax.samplers._stepper_solver import as_diffrax_solver as as_diffrax_solver
from diffjax.samplers._unadjusted import langevin as langevin
from diffjax.samplers._unipc import bh1 as bh1, bh2 as bh2
