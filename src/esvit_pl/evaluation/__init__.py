"""Questions to frozen features: what k nearest neighbours or a linear classifier make of them.

Loaded name by name (PEP 562): `evaluation.names` is read by commands that load no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esvit_pl.evaluation.baselines import Baselines as Baselines
    from esvit_pl.evaluation.baselines import GreyHistogram as GreyHistogram
    from esvit_pl.evaluation.baselines import RawPixels as RawPixels
    from esvit_pl.evaluation.cache import FeatureCache as FeatureCache
    from esvit_pl.evaluation.correspondence import RegionCorrespondence as RegionCorrespondence
    from esvit_pl.evaluation.correspondence import RegionRetrieval as RegionRetrieval
    from esvit_pl.evaluation.data import EvaluationData as EvaluationData
    from esvit_pl.evaluation.data import Place as Place
    from esvit_pl.evaluation.data import Training as Training
    from esvit_pl.evaluation.data import place_of as place_of
    from esvit_pl.evaluation.dense import DenseData as DenseData
    from esvit_pl.evaluation.dense import KeypointCorrespondence as KeypointCorrespondence
    from esvit_pl.evaluation.dense import RawRegions as RawRegions
    from esvit_pl.evaluation.dense import SegmentationInContext as SegmentationInContext
    from esvit_pl.evaluation.dense import SegmentationKNN as SegmentationKNN
    from esvit_pl.evaluation.dense import SegmentationLinear as SegmentationLinear
    from esvit_pl.evaluation.features import Extracted as Extracted
    from esvit_pl.evaluation.features import extract_features as extract_features
    from esvit_pl.evaluation.features import unpack_batch as unpack_batch
    from esvit_pl.evaluation.features import unpack_first_view as unpack_first_view
    from esvit_pl.evaluation.few_shot import FewShot as FewShot
    from esvit_pl.evaluation.in_turn import InTurn as InTurn
    from esvit_pl.evaluation.interface import Evaluator as Evaluator
    from esvit_pl.evaluation.knn import KNN as KNN
    from esvit_pl.evaluation.knn import knn_accuracy_over_ranks as knn_accuracy_over_ranks
    from esvit_pl.evaluation.label_free import EffectiveRank as EffectiveRank
    from esvit_pl.evaluation.label_free import LiDAR as LiDAR
    from esvit_pl.evaluation.label_free import NearestImages as NearestImages
    from esvit_pl.evaluation.label_free import PerBlock as PerBlock
    from esvit_pl.evaluation.label_free import RankMe as RankMe
    from esvit_pl.evaluation.label_free import RegionDiversity as RegionDiversity
    from esvit_pl.evaluation.linear import Linear as Linear
    from esvit_pl.evaluation.linear import LinearHeads as LinearHeads
    from esvit_pl.evaluation.linear import learn_ as learn_
    from esvit_pl.evaluation.logistic import Logistic as Logistic
    from esvit_pl.evaluation.logistic import LogisticModel as LogisticModel
    from esvit_pl.evaluation.logistic import fit_logistic as fit_logistic
    from esvit_pl.evaluation.stored import Stored as Stored
    from esvit_pl.evaluation.stored import load_features as load_features

_HOMES = {
    "Baselines": "baselines",
    "DenseData": "dense",
    "EffectiveRank": "label_free",
    "EvaluationData": "data",
    "Evaluator": "interface",
    "Extracted": "features",
    "FeatureCache": "cache",
    "FewShot": "few_shot",
    "GreyHistogram": "baselines",
    "InTurn": "in_turn",
    "KNN": "knn",
    "KeypointCorrespondence": "dense",
    "LiDAR": "label_free",
    "PerBlock": "label_free",
    "Linear": "linear",
    "LinearHeads": "linear",
    "Logistic": "logistic",
    "LogisticModel": "logistic",
    "NearestImages": "label_free",
    "Place": "data",
    "RankMe": "label_free",
    "RawPixels": "baselines",
    "RawRegions": "dense",
    "RegionCorrespondence": "correspondence",
    "RegionDiversity": "label_free",
    "RegionRetrieval": "correspondence",
    "SegmentationInContext": "dense",
    "SegmentationKNN": "dense",
    "SegmentationLinear": "dense",
    "Stored": "stored",
    "Training": "data",
    "extract_features": "features",
    "fit_logistic": "logistic",
    "knn_accuracy_over_ranks": "knn",
    "learn_": "linear",
    "load_features": "stored",
    "place_of": "data",
    "unpack_batch": "features",
    "unpack_first_view": "features",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_HOMES)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
