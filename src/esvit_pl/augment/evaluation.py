"""Normalisation, and the single view that evaluation uses."""

from __future__ import annotations

import torch
from torch import Tensor

from esvit_pl.augment.crop import resize
from esvit_pl.augment.photometric import luma
from esvit_pl.augment.recipe import Recipe

LONGEST = 16  # short sides; more of a longer image is cut off before it is resized, as the crop is from its centre
LEAST_DEVIATION = 1 / 255  # a uniform image has deviation 0, which nothing can be divided by


def to_unit(image: Tensor) -> Tensor:
    """uint8 to float32 in 0-1, in contiguous memory (c h w)."""
    return image.float().contiguous() / 255


def to_channels(recipe: Recipe, views: Tensor) -> Tensor:
    """(b 3 h w) to (b c h w), c = `recipe.channels`: unchanged for 3 channels, grey for 1."""
    return luma(views) if recipe.channels == 1 else views


def image_moments(recipe: Recipe, image: Tensor) -> Tensor | None:
    """(2,): mean and standard deviation of all values of `image` uint8 (3 h w) in 0-1, for `normalize="image"`.

    None for the other settings of `normalize`, which need only the views.
    """
    if recipe.normalize != "image":
        return None
    return torch.cat(_moments(to_channels(recipe, to_unit(image)[None]))).flatten()


def normalize(recipe: Recipe, views: Tensor, moments: Tensor | None) -> Tensor:
    """Standardise `views` (b c h w) in 0-1 as `recipe.normalize` says; `moments` (b 2) or (2,) from `image_moments`."""
    if recipe.normalize == "dataset":
        numbers = torch.tensor((recipe.mean, recipe.std), dtype=views.dtype).to(views.device, non_blocking=True)
        mean, std = numbers[..., None, None].unbind(0)
        return (views - mean) / std
    if moments is None:
        mean, std = _moments(views)
    else:
        mean, std = moments.reshape(-1, 2)[..., None, None, None].unbind(1)
    return (views - mean) / std.clamp(min=LEAST_DEVIATION)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean, (images - mean).square().mean((1, 2, 3), keepdim=True).sqrt()  # twice as fast as torch.std


def evaluation_view(recipe: Recipe, image: Tensor, *, normalized: bool = True) -> Tensor:
    """Resize the shorter side of `image` uint8 (3 h w) to `recipe.eval_resize`, cut the central square, normalise.

    With `recipe.eval_squash` both sides are resized to `recipe.eval_resize`.

    Returns float32 (c s s), c = `recipe.channels`, s = `recipe.eval_crop`; in 0-1 if not `normalized`.
    """
    moments = image_moments(recipe, image) if normalized else None
    short, side = recipe.eval_resize, recipe.eval_crop
    if recipe.eval_squash:
        size = (short, short)
    else:
        image = _not_too_long(image)
        height, width = image.shape[-2:]
        # the longer side is cut, not rounded, to whole pixels, as torchvision does
        size = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
    resized = resize(image, size, recipe.eval_interpolation)
    top, left = (round((length - side) / 2) for length in size)
    view = to_channels(recipe, to_unit(resized[:, top : top + side, left : left + side])[None])
    return (normalize(recipe, view, moments) if normalized else view)[0]


def whole_view(recipe: Recipe, image: Tensor, *, side: int | None = None, multiple: int = 1) -> Tensor:
    """The whole `image` uint8 (3 h w), prepared like `evaluation_view` but for the cut: float32 (c h' w').

    Args:
        side: pixels of the shorter side; None is `recipe.eval_crop`.
        multiple: both sides are rounded to a multiple of so many pixels, so that the image falls into whole regions.

    Raises:
        ValueError: the image is so long that its longer side would be huge.
    """
    height, width = image.shape[-2:]
    short = min(height, width)
    if max(height, width) > LONGEST * short:
        raise ValueError(f"an image of {width} x {height} pixels is too long to be shown whole; cut a part out of it")
    wanted = recipe.eval_crop if side is None else side
    size = [max(round(wanted * length / short / multiple), 1) * multiple for length in (height, width)]
    view = to_channels(recipe, to_unit(resize(image, (size[0], size[1]), recipe.eval_interpolation))[None])
    return normalize(recipe, view, image_moments(recipe, image))[0]


def _not_too_long(image: Tensor) -> Tensor:
    """The middle of an image that is very long: one of 1 x 30,000 pixels would be resized to billions."""
    height, width = image.shape[-2:]
    limit = LONGEST * min(height, width)
    top, left = max(height - limit, 0) // 2, max(width - limit, 0) // 2
    return image[:, top : top + limit, left : left + limit]
