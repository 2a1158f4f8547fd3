"""What a network regresses, and the denoiser that it becomes."""

from diffjax.parameterisation._base import (
    AbstractParameterisation as AbstractParameterisation,
    eps_error_scale as eps_error_scale,
    recover as recover,
    target as target,
)
from diffjax.parameterisation._denoiser import (
    NetworkDenoiser as NetworkDenoiser,
    apply_network as apply_network,
    make_denoiser as make_denoiser,
    score as score,
)
from diffjax.parameterisation._hybrid import (
    HybridScore as HybridScore,
    apply_hybrid as apply_hybrid,
    make_hybrid_score as make_hybrid_score,
)
from diffjax.parameterisation._karras import KarrasPrediction as KarrasPrediction
from diffjax.parameterisation._linear import (
    EpsPrediction as EpsPrediction,
    ScorePrediction as ScorePrediction,
    VelocityPrediction as VelocityPrediction,
    VPrediction as VPrediction,
    X0Prediction as X0Prediction,
)
from diffjax.parameterisation._retime import RetimedDenoiser as RetimedDenoiser, retime as retime
