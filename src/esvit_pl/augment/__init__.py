"""From an image to views: a recipe of plain numbers, crops, and colour operations with per-sample parameters."""

from esvit_pl.augment.crop import crop_resize, random_box, resize
from esvit_pl.augment.evaluation import evaluation_view, normalize
from esvit_pl.augment.photometric import OFF, ORDERS, PARAMS, apply_color
from esvit_pl.augment.recipe import Recipe, ViewRecipe
from esvit_pl.augment.transform import EvaluationTransform
from esvit_pl.augment.views import ViewParameters, draw, make_views

__all__ = [
    "OFF",
    "ORDERS",
    "PARAMS",
    "EvaluationTransform",
    "Recipe",
    "ViewParameters",
    "ViewRecipe",
    "apply_color",
    "crop_resize",
    "draw",
    "evaluation_view",
    "make_views",
    "normalize",
    "random_box",
    "resize",
]
