"""Pure measures of features; nothing here learns."""

from esvit_pl.metrics.collapse import (
    HEALTHY,
    Healthy,
    diversity,
    effective_rank,
    entropy_share,
    feature_spread,
    largest_entropy,
    rankme,
    region_diversity,
    region_statistics,
)
from esvit_pl.metrics.correspondence import (
    MEASURES,
    Correspondences,
    RegionMap,
    correspond,
    correspondence_sums,
    retrieved,
)
from esvit_pl.metrics.knn import TopK, knn_accuracy, knn_correct, knn_predict, nearest

__all__ = [
    "HEALTHY",
    "MEASURES",
    "Correspondences",
    "Healthy",
    "RegionMap",
    "TopK",
    "correspond",
    "correspondence_sums",
    "diversity",
    "effective_rank",
    "entropy_share",
    "feature_spread",
    "knn_accuracy",
    "knn_correct",
    "knn_predict",
    "largest_entropy",
    "nearest",
    "rankme",
    "region_diversity",
    "region_statistics",
    "retrieved",
]
