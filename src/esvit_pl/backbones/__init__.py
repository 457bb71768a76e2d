"""Backbones of one contract: ``build(name, **kwargs) -> Backbone``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm import is_model

from esvit_pl.backbones.cvt import CvT
from esvit_pl.backbones.igpt import IGPT
from esvit_pl.backbones.interface import Attention, Backbone, Features, Regions
from esvit_pl.backbones.recompute import Recomputable
from esvit_pl.backbones.registry import ModelForTimm
from esvit_pl.backbones.swin import Swin
from esvit_pl.backbones.timm_backbone import TimmBackbone
from esvit_pl.backbones.timm_errors import unknown
from esvit_pl.backbones.vil import ViL

FAMILIES: dict[str, Callable[..., Backbone]] = {"swin": Swin, "cvt": CvT, "vil": ViL, "igpt": IGPT}
"""Family name -> class. A family of your own is one more entry: ``FAMILIES["mine"] = MyBackbone``."""


def build(name: str, **kwargs: Any) -> Backbone:
    """Build a backbone from plain numbers; the target of every ``conf/backbone/*.yaml``.

    Args:
        name: one of our families, or any timm model, as "convnextv2_atto".
        kwargs: of the family's class, or of `TimmBackbone`.

    Raises:
        ValueError: unknown name, with the near ones; or a size that the family cannot be built with.
    """
    plain: dict[str, Any] = {
        key: list(value) if isinstance(value, (tuple, list)) else value for key, value in kwargs.items()
    }
    if name in FAMILIES:
        return FAMILIES[name](**plain)
    if not is_model(name):
        raise ValueError(unknown(name, FAMILIES))
    return TimmBackbone(name, **plain)


__all__ = [
    "FAMILIES",
    "IGPT",
    "Attention",
    "Backbone",
    "CvT",
    "Features",
    "ModelForTimm",
    "Recomputable",
    "Regions",
    "Swin",
    "TimmBackbone",
    "ViL",
    "build",
]
