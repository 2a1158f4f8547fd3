"""diffjax: a functional diffusion toolkit on JAX.

Everything is a pure function around the denoiser, `D(xt, t) -> x0_hat`:

    process, parameterisation, losses      train a network into a denoiser
    guidance                               denoiser -> denoiser
    samplers, likelihood                   what a denoiser is for
    analytic                               exact denoisers, to measure all of it against

The mathematics and the network adapters are here at the top; weightings and more losses are in `diffjax.losses`, and
`diffjax.networks`, `diffjax.training`, `diffjax.data`, `diffjax.metrics` and `diffjax.viz` are imported by name.
"""

from diffjax._typing import Denoiser as Denoiser, Network as Network
from diffjax.analytic import (
    AbstractDistribution as AbstractDistribution,
    Box as Box,
    Empirical as Empirical,
    Gaussian as Gaussian,
    GaussianMixture as GaussianMixture,
    cell_averages as cell_averages,
    cell_centres as cell_centres,
    exact_denoiser as exact_denoiser,
    flow_map as flow_map,
    fokker_planck as fokker_planck,
)
from diffjax.guidance import classifier_free as classifier_free
from diffjax.likelihood import (
    Exact as Exact,
    Hutchinson as Hutchinson,
    LogLikelihood as LogLikelihood,
    log_likelihood as log_likelihood,
)
from diffjax.losses import (
    continuous_elbo as continuous_elbo,
    denoising_loss as denoising_loss,
    discrete_elbo as discrete_elbo,
    drop_condition as drop_condition,
    hybrid_loss as hybrid_loss,
    implicit_score_matching as implicit_score_matching,
    sliced_score_matching as sliced_score_matching,
)
from diffjax.networks import from_equinox as from_equinox, from_linen as from_linen, from_nnx as from_nnx
from diffjax.parameterisation import (
    AbstractParameterisation as AbstractParameterisation,
    EpsPrediction as EpsPrediction,
    KarrasPrediction as KarrasPrediction,
    ScorePrediction as ScorePrediction,
    VelocityPrediction as VelocityPrediction,
    VPrediction as VPrediction,
    X0Prediction as X0Prediction,
    make_denoiser as make_denoiser,
    make_hybrid_score as make_hybrid_score,
    recover as recover,
    retime as retime,
    score as score,
    target as target,
)
from diffjax.process import (
    SDE as SDE,
    AbstractGaussianProcess as AbstractGaussianProcess,
    AbstractLinearProcess as AbstractLinearProcess,
    AbstractProcess as AbstractProcess,
    Clipped as Clipped,
    Cosine as Cosine,
    CriticallyDamped as CriticallyDamped,
    DiscreteChain as DiscreteChain,
    ImportanceTimes as ImportanceTimes,
    Karras as Karras,
    LearnedLogsnr as LearnedLogsnr,
    LinearSDE as LinearSDE,
    LogitNormalTimes as LogitNormalTimes,
    LognormalTimes as LognormalTimes,
    LogsnrTimes as LogsnrTimes,
    LowDiscrepancyTimes as LowDiscrepancyTimes,
    ModeTimes as ModeTimes,
    MonotoneLogsnr as MonotoneLogsnr,
    OffsetCosine as OffsetCosine,
    OrnsteinUhlenbeck as OrnsteinUhlenbeck,
    Polynomial as Polynomial,
    Rectified as Rectified,
    Retimed as Retimed,
    Schedule as Schedule,
    Shifted as Shifted,
    StratifiedTimes as StratifiedTimes,
    SubVP as SubVP,
    UniformTimes as UniformTimes,
    VarianceExploding as VarianceExploding,
    VarianceExplodingFromZero as VarianceExplodingFromZero,
    VariancePreserving as VariancePreserving,
    chain_times as chain_times,
    conditional as conditional,
    cosine_betas as cosine_betas,
    interval as interval,
    karras_grid as karras_grid,
    linear_betas as linear_betas,
    linear_kernel as linear_kernel,
    linear_perturb as linear_perturb,
    linear_prior as linear_prior,
    logsnr as logsnr,
    logsnr_grid as logsnr_grid,
    logsnr_rate as logsnr_rate,
    moments as moments,
    perturb as perturb,
    posterior_mean_std as posterior_mean_std,
    prior as prior,
    prior_log_prob as prior_log_prob,
    rates as rates,
    scaled_linear_betas as scaled_linear_betas,
    scales_from_logsnr as scales_from_logsnr,
    simulate as simulate,
    time_from_logsnr as time_from_logsnr,
    uniform_grid as uniform_grid,
    zero_terminal_snr as zero_terminal_snr,
)
from diffjax.samplers import (
    DDIM as DDIM,
    AbstractStepper as AbstractStepper,
    DPMpp2M as DPMpp2M,
    Heun as Heun,
    Solution as Solution,
    as_diffrax_solver as as_diffrax_solver,
    integrate as integrate,
    per_sample_path as per_sample_path,
    probability_flow as probability_flow,
    reverse_sde as reverse_sde,
    sample as sample,
    score_flow as score_flow,
    score_reverse_sde as score_reverse_sde,
    velocity as velocity,
)

__version__ = "0.1.0"
