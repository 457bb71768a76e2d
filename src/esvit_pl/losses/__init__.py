"""Pure losses: tensors in, scalar out."""

from esvit_pl.losses.center import Center
from esvit_pl.losses.matching import match_regions, match_views, matched_share
from esvit_pl.losses.prototypes import Target, partition_and_target
from esvit_pl.losses.region import RegionLoss
from esvit_pl.losses.view import ViewLoss

__all__ = [
    "Center",
    "RegionLoss",
    "Target",
    "ViewLoss",
    "match_regions",
    "match_views",
    "matched_share",
    "partition_and_target",
]
