"""What a network regresses, and the denoiser that it becomes."""

from diffjax.parameterisation._base import (
    AbstractParameterisation as AbstractParameterisation,
    eps_error_scale as eps_error_scale,
    recover as recover,
    target as target,
)
from diffjax.parameterisation._bounds import bounded as bounded
from diffjax.parameterisation._denoiser import NetworkDenoiser as NetworkDenoiser, apply_network as apply_network
from diffjax.parameterisation._edm import EDMPrediction as EDMPrediction
from diffjax.parameterisation._flow_map import NetworkFlowMap as NetworkFlowMap
from diffjax.parameterisation._hybrid import (
    HybridScore as HybridScore,
    apply_hybrid as apply_hybrid,
    make_hybrid_score as make_hybrid_score,
)
from diffjax.parameterisation._linear import ScorePrediction as ScorePrediction
from diffjax.parameterisation._retime import RetimedDenoiser as RetimedDenoiser, retime as retime
