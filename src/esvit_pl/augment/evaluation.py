"""Normalisation, and the one view that evaluation sees."""

from __future__ import annotations

from torch import Tensor

from esvit_pl.augment.crop import resize
from esvit_pl.augment.photometric import luma
from esvit_pl.augment.recipe import Recipe

LEAST_DEVIATION = 1 / 255  # of a uniform image, which has none to divide by


def to_unit(image: Tensor) -> Tensor:
    """uint8 to float32 in 0-1, rows contiguous."""
    return image.float().contiguous() / 255


def to_channels(recipe: Recipe, views: Tensor) -> Tensor:
    """(b 3 h w) to (b c h w), c = `recipe.channels`: unchanged, or grey."""
    return luma(views) if recipe.channels == 1 else views


def normalize(recipe: Recipe, views: Tensor, image: Tensor) -> Tensor:
    """Standardise `views` (b c h w) in 0-1, cut from `image` uint8 (3 h w), as `recipe.normalize` says."""
    if recipe.normalize == "dataset":
        mean, std = (views.new_tensor(value)[:, None, None] for value in (recipe.mean, recipe.std))
        return (views - mean) / std
    source = to_channels(recipe, to_unit(image)[None]) if recipe.normalize == "image" else views
    mean = source.mean((1, 2, 3), keepdim=True)
    std = (source - mean).square().mean((1, 2, 3), keepdim=True).sqrt()  # half the time of torch.std
    return (views - mean) / std.clamp(min=LEAST_DEVIATION)


def evaluation_view(recipe: Recipe, image: Tensor, *, normalized: bool = True) -> Tensor:
    """Resize the shorter side of `image` uint8 (3 h w) to `recipe.eval_resize`, cut the central square, normalise.

    Returns float32 (c s s), c = `recipe.channels`, s = `recipe.eval_crop`; in 0-1 if not `normalized`.
    """
    height, width = image.shape[-2:]
    short, side = recipe.eval_resize, recipe.eval_crop
    # the longer side is cut, not rounded, to whole pixels, as torchvision does
    size = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
    resized = resize(image, size)
    top, left = (round((length - side) / 2) for length in size)
    view = to_channels(recipe, to_unit(resized[:, top : top + side, left : left + side])[None])
    return (normalize(recipe, view, image) if normalized else view)[0]
