"""EsViT: efficient self-supervised vision transformers for representation learning (arXiv 2106.09785).

The front door is for guests: it names what most people need and loads it when it is first used, so that
``import esvit_pl`` costs milliseconds and loads no torch. Code of this package imports from the rooms themselves.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esvit_pl.api import compose as compose
    from esvit_pl.api import evaluate as evaluate
    from esvit_pl.api import list_backbones as list_backbones
    from esvit_pl.api import plan as plan
    from esvit_pl.api import pretrain as pretrain
    from esvit_pl.backbones import Backbone as Backbone
    from esvit_pl.backbones import Features as Features
    from esvit_pl.backbones import build as build
    from esvit_pl.callbacks import CollapseMonitor as CollapseMonitor
    from esvit_pl.callbacks import LearningCurve as LearningCurve
    from esvit_pl.callbacks import LogFigures as LogFigures
    from esvit_pl.callbacks import OnlineKNN as OnlineKNN
    from esvit_pl.callbacks import OnlineLinear as OnlineLinear
    from esvit_pl.checkpoints import load_backbone as load_backbone
    from esvit_pl.data import ImageDataModule as ImageDataModule
    from esvit_pl.modules import KNNEvaluator as KNNEvaluator
    from esvit_pl.modules import LinearProbe as LinearProbe
    from esvit_pl.modules import Pretrainer as Pretrainer
    from esvit_pl.objectives import EsViTObjective as EsViTObjective

__version__ = "0.1.0"

# Public name -> the module that holds it. The imports above say the same to editors and type checkers.
_NAMES = {
    "Backbone": "esvit_pl.backbones",
    "CollapseMonitor": "esvit_pl.callbacks",
    "EsViTObjective": "esvit_pl.objectives",
    "Features": "esvit_pl.backbones",
    "ImageDataModule": "esvit_pl.data",
    "KNNEvaluator": "esvit_pl.modules",
    "LearningCurve": "esvit_pl.callbacks",
    "LinearProbe": "esvit_pl.modules",
    "LogFigures": "esvit_pl.callbacks",
    "OnlineKNN": "esvit_pl.callbacks",
    "OnlineLinear": "esvit_pl.callbacks",
    "Pretrainer": "esvit_pl.modules",
    "build": "esvit_pl.backbones",
    "compose": "esvit_pl.api",
    "evaluate": "esvit_pl.api",
    "list_backbones": "esvit_pl.api",
    "load_backbone": "esvit_pl.checkpoints",
    "plan": "esvit_pl.api",
    "pretrain": "esvit_pl.api",
}
# Rooms that answer to `esvit_pl.<room>` without an import of their own.
_ROOMS = (
    "augment",
    "backbones",
    "callbacks",
    "checkpoints",
    "datasets",
    "evaluation",
    "losses",
    "metrics",
    "modules",
    "objectives",
    "visualize",
)

__all__ = ["__version__", *_NAMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Load ``name`` on first use (PEP 562) and keep it."""
    if name in _NAMES:
        value = getattr(import_module(_NAMES[name]), name)
    elif name in _ROOMS:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__dir__())}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({"__version__", *_NAMES, *_ROOMS})
