"""Forward processes: from data at t = 0 to noise at t = 1.

process -- alpha, sigma --> logsnr, rates, interval       schedules, and what follows from them
        -- perturb, prior, conditional, posterior         kernels
        -- simulate                                       paths of the SDE, by diffrax
        -- *Times (training), *_grid (sampling)           where on the clock to look

Shifted, Clipped, Retimed                                 a process's path on another schedule
LinearSDE, CriticallyDamped -- moments, linear_*          matrices: channels that drive one another
SDE -- simulate, noise_*                                  any f and g, without kernels
"""

from diffjax.process._base import (
    AbstractGaussianProcess as AbstractGaussianProcess,
    AbstractProcess as AbstractProcess,
    conditional as conditional,
    interval as interval,
    logsnr as logsnr,
    logsnr_rate as logsnr_rate,
    perturb as perturb,
    posterior_mean_std as posterior_mean_std,
    prior as prior,
    prior_log_prob as prior_log_prob,
    rates as rates,
    time_from_logsnr as time_from_logsnr,
)
from diffjax.process._critically_damped import CriticallyDamped as CriticallyDamped
from diffjax.process._discrete import (
    DiscreteChain as DiscreteChain,
    chain_times as chain_times,
    cosine_betas as cosine_betas,
    linear_betas as linear_betas,
    scaled_linear_betas as scaled_linear_betas,
    zero_terminal_snr as zero_terminal_snr,
)
from diffjax.process._grid import (
    karras_grid as karras_grid,
    logsnr_grid as logsnr_grid,
    quadratic_grid as quadratic_grid,
    shifted_grid as shifted_grid,
    snr_grid as snr_grid,
    uniform_grid as uniform_grid,
)
from diffjax.process._karras import Karras as Karras
from diffjax.process._learned import LearnedLogsnr as LearnedLogsnr, MonotoneLogsnr as MonotoneLogsnr
from diffjax.process._linear import (
    AbstractLinearProcess as AbstractLinearProcess,
    LinearSDE as LinearSDE,
    linear_kernel as linear_kernel,
    linear_perturb as linear_perturb,
    linear_prior as linear_prior,
    moments as moments,
)
from diffjax.process._noise import (
    diagonal_noise as diagonal_noise,
    noise_divergence as noise_divergence,
    noise_operator as noise_operator,
)
from diffjax.process._offset_cosine import OffsetCosine as OffsetCosine
from diffjax.process._ou import OrnsteinUhlenbeck as OrnsteinUhlenbeck
from diffjax.process._polynomial import Polynomial as Polynomial
from diffjax.process._rectified import Rectified as Rectified
from diffjax.process._scales import scales_from_logsnr as scales_from_logsnr
from diffjax.process._schedule import Schedule as Schedule
from diffjax.process._sde import (
    SDE as SDE,
    PerSamplePath as PerSamplePath,
    per_sample_path as per_sample_path,
    simulate as simulate,
)
from diffjax.process._sub_vp import SubVP as SubVP
from diffjax.process._time import (
    AbstractTimes as AbstractTimes,
    LowDiscrepancyTimes as LowDiscrepancyTimes,
    StratifiedTimes as StratifiedTimes,
    UniformTimes as UniformTimes,
)
from diffjax.process._time_density import (
    ImportanceTimes as ImportanceTimes,
    LogitNormalTimes as LogitNormalTimes,
    LognormalTimes as LognormalTimes,
    LogsnrTimes as LogsnrTimes,
    ModeTimes as ModeTimes,
)
from diffjax.process._ve import (
    VarianceExploding as VarianceExploding,
    VarianceExplodingFromZero as VarianceExplodingFromZero,
)
from diffjax.process._vp import Cosine as Cosine, VariancePreserving as VariancePreserving
from diffjax.process._wrappers import Clipped as Clipped, Retimed as Retimed, Shifted as Shifted
