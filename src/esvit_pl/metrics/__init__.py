"""Pure measures of features."""

from esvit_pl.metrics.baselines import GreyHistogram, RawPixels
from esvit_pl.metrics.collapse import (
    HEALTHY,
    Healthy,
    effective_rank,
    entropy_share,
    feature_spread,
    largest_entropy,
    region_diversity,
)
from esvit_pl.metrics.features import Extracted, extract_features, gather_uneven, joined, pooled, unpack_batch
from esvit_pl.metrics.isolation import undisturbed, untracked
from esvit_pl.metrics.knn import TopK, knn_accuracy, knn_accuracy_over_ranks, knn_correct, knn_predict
from esvit_pl.metrics.names import knn_metrics

__all__ = [
    "HEALTHY",
    "Extracted",
    "GreyHistogram",
    "Healthy",
    "RawPixels",
    "TopK",
    "effective_rank",
    "entropy_share",
    "extract_features",
    "feature_spread",
    "gather_uneven",
    "joined",
    "knn_accuracy",
    "knn_accuracy_over_ranks",
    "knn_correct",
    "knn_metrics",
    "knn_predict",
    "largest_entropy",
    "pooled",
    "region_diversity",
    "undisturbed",
    "unpack_batch",
    "untracked",
]
