"""Scalars to minimise, each `(params, key, x0, cond, ...) -> (loss, aux)`."""

from diffjax.losses._denoising import (
    denoising_loss as denoising_loss,
    drop_condition as drop_condition,
    mean_square as mean_square,
    per_sample_loss as per_sample_loss,
)
from diffjax.losses._weighting import (
    EDMWeighting as EDMWeighting,
    MinSNR as MinSNR,
    constant as constant,
    likelihood as likelihood,
    native as native,
)
