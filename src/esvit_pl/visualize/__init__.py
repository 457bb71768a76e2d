"""Pictures: arrays first, ink last.

Loaded name by name (PEP 562): a report draws curves and loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from esvit_pl.visualize.film import film as film  # now: its file has the same name

if TYPE_CHECKING:
    from esvit_pl.visualize.attention import attention_maps as attention_maps
    from esvit_pl.visualize.attention import entropies as entropies
    from esvit_pl.visualize.attention import heaviest as heaviest
    from esvit_pl.visualize.correspondence import MatchedViews as MatchedViews
    from esvit_pl.visualize.correspondence import matched_views as matched_views
    from esvit_pl.visualize.figures.attention import attention_panels as attention_panels
    from esvit_pl.visualize.figures.attention import draw_attention as draw_attention
    from esvit_pl.visualize.figures.comparison import comparison as comparison
    from esvit_pl.visualize.figures.correspondence import draw_correspondence as draw_correspondence
    from esvit_pl.visualize.figures.crops import crops as crops
    from esvit_pl.visualize.figures.curves import draw_curves as draw_curves
    from esvit_pl.visualize.figures.learning_curve import learning_curve as learning_curve
    from esvit_pl.visualize.figures.neighbours import draw_near_regions as draw_near_regions
    from esvit_pl.visualize.figures.neighbours import neighbours as neighbours
    from esvit_pl.visualize.figures.pca import draw_pca as draw_pca
    from esvit_pl.visualize.figures.style import as_png as as_png
    from esvit_pl.visualize.figures.style import save as save
    from esvit_pl.visualize.figures.sweep import sweep as sweep
    from esvit_pl.visualize.figures.throughput import Model as Model
    from esvit_pl.visualize.figures.throughput import accuracy_against_throughput as accuracy_against_throughput
    from esvit_pl.visualize.pca import pca_maps as pca_maps
    from esvit_pl.visualize.regions import NearRegion as NearRegion
    from esvit_pl.visualize.regions import nearest_regions as nearest_regions

_HOMES = {
    "MatchedViews": "correspondence",
    "Model": "figures.throughput",
    "NearRegion": "regions",
    "accuracy_against_throughput": "figures.throughput",
    "as_png": "figures.style",
    "attention_maps": "attention",
    "attention_panels": "figures.attention",
    "comparison": "figures.comparison",
    "crops": "figures.crops",
    "draw_attention": "figures.attention",
    "draw_correspondence": "figures.correspondence",
    "draw_curves": "figures.curves",
    "draw_near_regions": "figures.neighbours",
    "draw_pca": "figures.pca",
    "entropies": "attention",
    "heaviest": "attention",
    "learning_curve": "figures.learning_curve",
    "matched_views": "correspondence",
    "nearest_regions": "regions",
    "neighbours": "figures.neighbours",
    "pca_maps": "pca",
    "save": "figures.style",
    "sweep": "figures.sweep",
}
__all__ = [*_HOMES, "film"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_HOMES)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
