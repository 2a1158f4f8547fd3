"""Scalars to minimise, each `(params, key, x0, cond, ...) -> (loss, aux)`."""

from diffjax.losses._ddpm import (
    BinDecoder as BinDecoder,
    ddpm_bound as ddpm_bound,
    density_decoder as density_decoder,
    large_variance as large_variance,
    learned_variance as learned_variance,
    learned_variance_loss as learned_variance_loss,
    prediction_only as prediction_only,
    small_variance as small_variance,
)
from diffjax.losses._denoising import (
    denoising_loss as denoising_loss,
    drop_condition as drop_condition,
    mean_square as mean_square,
    per_sample_loss as per_sample_loss,
)
from diffjax.losses._elbo import (
    LevelDecoder as LevelDecoder,
    continuous_elbo as continuous_elbo,
    discrete_elbo as discrete_elbo,
    gaussian_decoder as gaussian_decoder,
    prior_divergence as prior_divergence,
)
from diffjax.losses._weighting import (
    EDMWeighting as EDMWeighting,
    MinSNR as MinSNR,
    constant as constant,
    likelihood as likelihood,
    native as native,
)
