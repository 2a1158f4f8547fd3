"""Losses that train flow maps: generation in one to four steps.

teacher (a denoiser) or data --> loss --> network --> make_flow_map --> F(xt, t, s) --> sample(..., Jump())

semigroup     X(X(xt, t, u), u, s) = X(xt, t, s)          progressive distillation, shortcut
Eulerian      d/dt X(xt, t, s) = 0 along the flow         consistency models, sCM, MeanFlow
"""

from diffjax.flow_maps._consistency import (
    OverGap as OverGap,
    consistency_loss as consistency_loss,
    edm_weighting as edm_weighting,
    per_sample_consistency as per_sample_consistency,
    root_mean_square as root_mean_square,
    unweighted as unweighted,
)
from diffjax.flow_maps._continuous import (
    consistency_tangent as consistency_tangent,
    continuous_consistency_loss as continuous_consistency_loss,
)
from diffjax.flow_maps._levels import (
    ECTLevels as ECTLevels,
    EDMLevels as EDMLevels,
    GridLevels as GridLevels,
    ct_decay as ct_decay,
    ct_levels as ct_levels,
    ict_levels as ict_levels,
)
from diffjax.flow_maps._mean_flow import (
    GuidedVelocity as GuidedVelocity,
    mean_flow_loss as mean_flow_loss,
    mean_flow_residual as mean_flow_residual,
)
from diffjax.flow_maps._pairs import (
    AbstractPairs as AbstractPairs,
    PartlyEqual as PartlyEqual,
    SortedPairs as SortedPairs,
    UniformPairs as UniformPairs,
)
from diffjax.flow_maps._progressive import (
    halve_grid as halve_grid,
    progressive_loss as progressive_loss,
    progressive_target as progressive_target,
    truncated_snr as truncated_snr,
)
from diffjax.flow_maps._shortcut import shortcut_loss as shortcut_loss
