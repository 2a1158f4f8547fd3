"""Forward processes: from data at t = 0 to noise at t = 1.

AbstractGaussianProcess: alpha, sigma, logsnr, time_from_logsnr, conditional, scales, interval      methods
        -- perturb, prior, posterior_mean_std, schedule_derivatives       what follows from them
        -- ddim_coefficients, move, average               one step of the probability flow
        -- angle, Line, Circle                            coordinates in which every process is one flow
        -- sample_keys, normal_like                       noise of a sample by its global index
        -- simulate                                       paths of the SDE, by diffrax
        -- *Times (training), *_grid (sampling)           where on the clock to look

Shifted, Clipped, Retimed                                 a process's path on another schedule
AbstractLinearProcess: moments, kernel; linear_*          matrices: channels that drive one another
SDE -- simulate                                           any f and g, without kernels
"""

from diffjax._arrays import normal_like as normal_like, sample_keys as sample_keys
from diffjax.process._base import AbstractProcess as AbstractProcess, diagonal_noise as diagonal_noise
from diffjax.process._discrete import (
    DiscreteChain as DiscreteChain,
    chain_times as chain_times,
    cosine_betas as cosine_betas,
    linear_betas as linear_betas,
    scaled_linear_betas as scaled_linear_betas,
    zero_terminal_snr as zero_terminal_snr,
)
from diffjax.process._flow_map import (
    AbstractFlowMap as AbstractFlowMap,
    Dyadic as Dyadic,
    check_known as check_known,
    is_flow_map as is_flow_map,
)
from diffjax.process._flow_step import (
    Circle as Circle,
    Line as Line,
    angle as angle,
    average as average,
    ddim_coefficients as ddim_coefficients,
    move as move,
)
from diffjax.process._gaussian import (
    AbstractGaussianProcess as AbstractGaussianProcess,
    logsnr_rate as logsnr_rate,
    prior_log_prob as prior_log_prob,
    scales_from_logsnr as scales_from_logsnr,
    schedule_derivatives as schedule_derivatives,
)
from diffjax.process._grids import (
    angle_grid as angle_grid,
    line_grid as line_grid,
    quadratic_grid as quadratic_grid,
    shifted_grid as shifted_grid,
    snr_grid as snr_grid,
)
from diffjax.process._learned import LearnedLogsnr as LearnedLogsnr, MonotoneLogsnr as MonotoneLogsnr
from diffjax.process._linear import (
    AbstractLinearProcess as AbstractLinearProcess,
    CriticallyDamped as CriticallyDamped,
    LinearSDE as LinearSDE,
    linear_perturb as linear_perturb,
    linear_prior as linear_prior,
)
from diffjax.process._rectified import Polynomial as Polynomial
from diffjax.process._sde import SDE as SDE, PerSamplePath as PerSamplePath, simulate as simulate
from diffjax.process._times import (
    AbstractTimes as AbstractTimes,
    ImportanceTimes as ImportanceTimes,
    LogitNormalTimes as LogitNormalTimes,
    LognormalTimes as LognormalTimes,
    LogsnrTimes as LogsnrTimes,
    LowDiscrepancyTimes as LowDiscrepancyTimes,
    ModeTimes as ModeTimes,
)
from diffjax.process._ve import VarianceExplodingFromZero as VarianceExplodingFromZero
from diffjax.process._vp import OffsetCosine as OffsetCosine, OrnsteinUhlenbeck as OrnsteinUhlenbeck, SubVP as SubVP
from diffjax.process._wrappers import (
    Clipped as Clipped,
    Retimed as Retimed,
    Schedule as Schedule,
    Shifted as Shifted,
)
