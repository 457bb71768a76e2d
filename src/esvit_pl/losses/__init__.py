"""Pure losses: tensors in, scalar out."""

from esvit_pl.losses.assignment import AssignmentLoss, assign
from esvit_pl.losses.center import Center
from esvit_pl.losses.contrast import BatchContrast, PairContrast, QueueContrast, pairs
from esvit_pl.losses.key_queue import KeyQueue
from esvit_pl.losses.matching import match_regions, match_views, matched_share
from esvit_pl.losses.next_token import next_token_loss
from esvit_pl.losses.prediction import PredictionLoss
from esvit_pl.losses.prototypes import Target, partition_and_target
from esvit_pl.losses.region import RegionLoss
from esvit_pl.losses.view import ViewLoss

__all__ = [
    "AssignmentLoss",
    "BatchContrast",
    "Center",
    "KeyQueue",
    "PairContrast",
    "PredictionLoss",
    "QueueContrast",
    "RegionLoss",
    "Target",
    "ViewLoss",
    "assign",
    "match_regions",
    "match_views",
    "matched_share",
    "next_token_loss",
    "pairs",
    "partition_and_target",
]
