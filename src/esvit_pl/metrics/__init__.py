"""Pure measures of features; nothing here learns.

Loaded name by name (PEP 562): `metrics.health` is read by commands that load no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esvit_pl.metrics.classification import average_precision as average_precision
    from esvit_pl.metrics.classification import mean_per_class_accuracy as mean_per_class_accuracy
    from esvit_pl.metrics.classification import measure as measure
    from esvit_pl.metrics.classification import roc_auc as roc_auc
    from esvit_pl.metrics.collapse import diversity as diversity
    from esvit_pl.metrics.collapse import effective_rank as effective_rank
    from esvit_pl.metrics.collapse import entropy_share as entropy_share
    from esvit_pl.metrics.collapse import feature_spread as feature_spread
    from esvit_pl.metrics.collapse import largest_entropy as largest_entropy
    from esvit_pl.metrics.collapse import lidar as lidar
    from esvit_pl.metrics.collapse import rankme as rankme
    from esvit_pl.metrics.collapse import region_diversity as region_diversity
    from esvit_pl.metrics.collapse import region_statistics as region_statistics
    from esvit_pl.metrics.correspondence import MEASURES as MEASURES
    from esvit_pl.metrics.correspondence import Correspondences as Correspondences
    from esvit_pl.metrics.correspondence import RegionMap as RegionMap
    from esvit_pl.metrics.correspondence import correspond as correspond
    from esvit_pl.metrics.correspondence import correspondence_sums as correspondence_sums
    from esvit_pl.metrics.correspondence import retrieved as retrieved
    from esvit_pl.metrics.dense import VOID as VOID
    from esvit_pl.metrics.dense import IoU as IoU
    from esvit_pl.metrics.dense import confusion as confusion
    from esvit_pl.metrics.dense import correct_keypoints as correct_keypoints
    from esvit_pl.metrics.dense import iou as iou
    from esvit_pl.metrics.dense import majority as majority
    from esvit_pl.metrics.dense import match_places as match_places
    from esvit_pl.metrics.dense import neighbour_votes as neighbour_votes
    from esvit_pl.metrics.dense import region_labels as region_labels
    from esvit_pl.metrics.dense import upsampled as upsampled
    from esvit_pl.metrics.health import HEALTHY as HEALTHY
    from esvit_pl.metrics.health import Healthy as Healthy
    from esvit_pl.metrics.knn import TopK as TopK
    from esvit_pl.metrics.knn import knn_accuracy as knn_accuracy
    from esvit_pl.metrics.knn import knn_correct as knn_correct
    from esvit_pl.metrics.knn import knn_predict as knn_predict
    from esvit_pl.metrics.knn import nearest as nearest
    from esvit_pl.metrics.streamed import Moments as Moments
    from esvit_pl.metrics.streamed import diversity_of as diversity_of
    from esvit_pl.metrics.streamed import effective_rank_of as effective_rank_of
    from esvit_pl.metrics.streamed import lidar_of as lidar_of
    from esvit_pl.metrics.streamed import merged as merged
    from esvit_pl.metrics.streamed import moments as moments
    from esvit_pl.metrics.streamed import rankme_of as rankme_of

_HOMES = {
    "Correspondences": "correspondence",
    "HEALTHY": "health",
    "Healthy": "health",
    "IoU": "dense",
    "MEASURES": "correspondence",
    "Moments": "streamed",
    "RegionMap": "correspondence",
    "TopK": "knn",
    "VOID": "dense",
    "average_precision": "classification",
    "confusion": "dense",
    "correct_keypoints": "dense",
    "correspond": "correspondence",
    "correspondence_sums": "correspondence",
    "diversity": "collapse",
    "diversity_of": "streamed",
    "effective_rank": "collapse",
    "effective_rank_of": "streamed",
    "entropy_share": "collapse",
    "feature_spread": "collapse",
    "iou": "dense",
    "knn_accuracy": "knn",
    "knn_correct": "knn",
    "knn_predict": "knn",
    "largest_entropy": "collapse",
    "lidar": "collapse",
    "lidar_of": "streamed",
    "majority": "dense",
    "match_places": "dense",
    "mean_per_class_accuracy": "classification",
    "measure": "classification",
    "merged": "streamed",
    "moments": "streamed",
    "nearest": "knn",
    "neighbour_votes": "dense",
    "rankme": "collapse",
    "rankme_of": "streamed",
    "region_diversity": "collapse",
    "region_labels": "dense",
    "region_statistics": "collapse",
    "retrieved": "correspondence",
    "roc_auc": "classification",
    "upsampled": "dense",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_HOMES)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
