"""From an image to views: a recipe of plain numbers, crops, and colour operations with per-sample parameters."""

from .crop import crop_resize, random_box, resize
from .evaluation import evaluation_view, normalize
from .photometric import OFF, ORDERS, PARAMS, photometric
from .recipe import Recipe, ViewRecipe
from .views import ViewParameters, draw, make_views, view_generator

__all__ = [
    "OFF",
    "ORDERS",
    "PARAMS",
    "Recipe",
    "ViewParameters",
    "ViewRecipe",
    "crop_resize",
    "draw",
    "evaluation_view",
    "make_views",
    "normalize",
    "photometric",
    "random_box",
    "resize",
    "view_generator",
]
