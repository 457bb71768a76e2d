"""Backbones of one contract: ``build(name, **kwargs) -> Backbone``."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from esvit_pl.backbones.cvt import CvT
from esvit_pl.backbones.interface import Attention, Backbone, Features
from esvit_pl.backbones.swin import Swin
from esvit_pl.backbones.vil import ViL

FAMILIES: dict[str, Callable[..., Backbone]] = {"swin": Swin, "cvt": CvT, "vil": ViL}
"""Family name -> class. A family of your own is one more entry: ``FAMILIES["mine"] = MyBackbone``."""


def build(name: str, **kwargs: Any) -> Backbone:
    """Build a backbone of a family from plain numbers; the target of every ``conf/backbone/*.yaml``.

    Raises:
        ValueError: unknown family, with the near ones; or a size that the family cannot be built with.
    """
    if name not in FAMILIES:
        near = get_close_matches(name, FAMILIES, n=3, cutoff=0.4) or list(FAMILIES)
        raise ValueError(f"unknown backbone family {name!r}; did you mean {' or '.join(near)}?")
    return FAMILIES[name](
        **{key: list(value) if isinstance(value, (tuple, list)) else value for key, value in kwargs.items()}
    )


__all__ = ["FAMILIES", "Attention", "Backbone", "CvT", "Features", "Swin", "ViL", "build"]
