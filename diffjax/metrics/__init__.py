"""Metrics: how far samples are from data. All act on arrays; features are whatever function you choose.

features [n, d] -> feature_statistics -> merge ... -> frechet_distance        |mu_a - mu_b|^2 + tr(...), as FID
features x [n, d], reference [m, d] -----> kernel_distance         the same question without bias at any n, as KID
                                     |---> precision_recall        fidelity and coverage apart, by k-nearest neighbours
                                     '---> density_coverage        the same, not led by outliers
x [n, d], y [m, d] ----------------------> sliced_wasserstein      exact along each direction
x [n, d], reference [m, d] --------------> nearest_distances       is a sample a copy?
factors predicted, expected [n, k] ------> alignment               do pictures show what their captions say?

Features come from any function of images: `networks.inception_features` for the published distances (FID, KID), or a
`networks.Classifier` of the data at hand.
"""

from diffjax.metrics._alignment import Alignment as Alignment, alignment as alignment
from diffjax.metrics._frechet import (
    FeatureStatistics as FeatureStatistics,
    feature_statistics as feature_statistics,
    frechet_distance as frechet_distance,
    merge as merge,
)
from diffjax.metrics._kernel_distance import kernel_distance as kernel_distance
from diffjax.metrics._nearest import nearest_distances as nearest_distances
from diffjax.metrics._precision_recall import (
    DensityCoverage as DensityCoverage,
    PrecisionRecall as PrecisionRecall,
    density_coverage as density_coverage,
    precision_recall as precision_recall,
)
from diffjax.metrics._sliced import sliced_wasserstein as sliced_wasserstein
