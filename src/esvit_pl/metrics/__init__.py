"""Pure measures of features."""

from esvit_pl.metrics.baselines import GreyHistogram, RawPixels
from esvit_pl.metrics.collapse import (
    HEALTHY,
    Healthy,
    diversity,
    effective_rank,
    entropy_share,
    feature_spread,
    largest_entropy,
    region_diversity,
    region_statistics,
)
from esvit_pl.metrics.features import Extracted, extract_features, gather_uneven, joined, pooled, unpack_batch
from esvit_pl.metrics.isolation import same_random_state, undisturbed, untracked
from esvit_pl.metrics.knn import TopK, knn_accuracy, knn_accuracy_over_ranks, knn_correct, knn_predict
from esvit_pl.metrics.linear import LinearHeads, as_lrs, equal_heads, learn_, linear_metrics
from esvit_pl.metrics.names import knn_metrics

__all__ = [
    "HEALTHY",
    "Extracted",
    "GreyHistogram",
    "Healthy",
    "LinearHeads",
    "RawPixels",
    "TopK",
    "as_lrs",
    "diversity",
    "effective_rank",
    "entropy_share",
    "equal_heads",
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
    "learn_",
    "linear_metrics",
    "pooled",
    "region_diversity",
    "region_statistics",
    "same_random_state",
    "undisturbed",
    "unpack_batch",
    "untracked",
]
