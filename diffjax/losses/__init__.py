"""Scalars to minimise, each `(diffusion, params, key, x0, cond, ...) -> (loss, aux)`."""

from diffjax.losses._coupling import Assignment as Assignment, OptimalTransport as OptimalTransport
from diffjax.losses._ddpm import (
    BinDecoder as BinDecoder,
    density_decoder as density_decoder,
    large_variance as large_variance,
    learned_variance as learned_variance,
    learned_variance_loss as learned_variance_loss,
    negative_ddpm_elbo as negative_ddpm_elbo,
    prediction_only as prediction_only,
    small_variance as small_variance,
)
from diffjax.losses._denoising import (
    drop_condition as drop_condition,
    mean_square as mean_square,
    per_sample_loss as per_sample_loss,
)
from diffjax.losses._elbo import (
    LevelDecoder as LevelDecoder,
    bound_parts as bound_parts,
    check_levels as check_levels,
    draw_steps as draw_steps,
    gaussian_decoder as gaussian_decoder,
    negative_continuous_elbo as negative_continuous_elbo,
    negative_discrete_elbo as negative_discrete_elbo,
    prior_divergence as prior_divergence,
    snr_differences as snr_differences,
)
from diffjax.losses._huber import PseudoHuber as PseudoHuber
from diffjax.losses._hybrid import hybrid_loss as hybrid_loss
from diffjax.losses._ncsn import (
    LevelTimes as LevelTimes,
    noise_conditional_loss as noise_conditional_loss,
    noise_conditional_sum as noise_conditional_sum,
)
from diffjax.losses._score_matching import (
    explicit_score_matching as explicit_score_matching,
    finite_difference_sliced as finite_difference_sliced,
    implicit_score_matching as implicit_score_matching,
    sliced_score_matching as sliced_score_matching,
    sliced_score_matching_vr as sliced_score_matching_vr,
)
from diffjax.losses._span_corruption import (
    corrupt_spans as corrupt_spans,
    span_corruption_loss as span_corruption_loss,
)
from diffjax.losses._uncertainty import Uncertainty as Uncertainty, uncertainty_loss as uncertainty_loss
from diffjax.losses._weighting import (
    P2 as P2,
    EDMWeighting as EDMWeighting,
    MinSNR as MinSNR,
    OverLogsnr as OverLogsnr,
    Sigmoid as Sigmoid,
    SoftMinSNR as SoftMinSNR,
    constant as constant,
    flow_matching as flow_matching,
    likelihood_weighting as likelihood_weighting,
    native as native,
    on_score as on_score,
    on_v as on_v,
    on_x0 as on_x0,
)
