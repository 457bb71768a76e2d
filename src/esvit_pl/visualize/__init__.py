"""Pictures: arrays first, ink last."""

from esvit_pl.visualize.attention import attention_maps, entropies, heaviest
from esvit_pl.visualize.correspondence import MatchedViews, matched_views
from esvit_pl.visualize.figures.attention import attention_panels, draw_attention
from esvit_pl.visualize.figures.comparison import comparison
from esvit_pl.visualize.figures.correspondence import draw_correspondence
from esvit_pl.visualize.figures.crops import crops
from esvit_pl.visualize.figures.curves import draw_curves
from esvit_pl.visualize.figures.learning_curve import learning_curve
from esvit_pl.visualize.figures.neighbours import draw_near_regions, neighbours
from esvit_pl.visualize.figures.pca import draw_pca
from esvit_pl.visualize.figures.style import save
from esvit_pl.visualize.figures.sweep import sweep
from esvit_pl.visualize.figures.throughput import Model, accuracy_against_throughput
from esvit_pl.visualize.film import film
from esvit_pl.visualize.pca import pca_maps
from esvit_pl.visualize.regions import NearRegion, nearest_regions

__all__ = [
    "MatchedViews",
    "Model",
    "NearRegion",
    "accuracy_against_throughput",
    "attention_maps",
    "attention_panels",
    "comparison",
    "crops",
    "draw_attention",
    "draw_correspondence",
    "draw_curves",
    "draw_near_regions",
    "draw_pca",
    "entropies",
    "film",
    "heaviest",
    "learning_curve",
    "matched_views",
    "nearest_regions",
    "neighbours",
    "pca_maps",
    "save",
    "sweep",
]
