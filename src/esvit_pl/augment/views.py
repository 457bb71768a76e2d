"""The views of one image: `draw` chooses every random number first, and then the pixels follow from these numbers.

`draw` is cheap and runs in the worker. So does `cut_views`, which needs the image. `finish_views` colours and
normalises crops on the device where they are: one image at a time in the worker, or a whole batch on the GPU.

    parameters = draw(recipe.views, recipe, image.shape[-2:], seed=0, epoch=3, index=7)
    views = make_views(recipe, image, parameters)                       # for the network: cut_views and finish_views
    views = make_views(recipe, image, parameters, normalized=False)     # in 0-1, to look at
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esvit_pl.augment.crop import TRIES, absolute, crop_resize, random_box, relative
from esvit_pl.augment.evaluation import image_moments, normalize, to_channels, to_unit
from esvit_pl.augment.masks import draw_mask
from esvit_pl.augment.photometric import OFF, ORDERS, PARAMS, apply_color
from esvit_pl.augment.recipe import Recipe, ViewRecipe
from esvit_pl.seeding import numpy_generator

BOX_UNIFORMS = 2 * TRIES + 2
REDUCTIONS = (8, 4, 2)  # JPEG decoders can divide both sides by these
# Every decision has its own random number, so that switching one operation off does not change another.
DECISIONS = (
    "flip",
    "jitter",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "order",
    "grayscale",
    "blur",
    "blur_radius",
    "solarize",
    "noise",
)


class ViewParameters(NamedTuple):
    """Every random number that the v views of one image are made with.

    >>> recipe = Recipe(num_local=2)
    >>> parameters = draw(recipe.views, recipe, (480, 640), seed=0, epoch=3, index=7)
    >>> parameters.size, tuple(parameters.boxes.shape)
    ((224, 224, 96, 96), (4, 4))

    `size` v sides in pixels; `boxes` (v 4) x, y, width, height in 0-1 of the image; `flipped` (v,) bool; `params`
    (v p), columns named in `PARAMS`; `noise` for each view (1 size size), already scaled, or None; `masks` for each
    view (h w) bool, True where it is hidden from the student, or None.
    """

    size: tuple[int, ...]
    boxes: Tensor
    flipped: Tensor
    params: Tensor
    noise: tuple[Tensor | None, ...]
    masks: tuple[Tensor | None, ...] = ()


def draw(
    views: Sequence[ViewRecipe], recipe: Recipe, image_size: Sequence[int], *, seed: int, epoch: int, index: int
) -> ViewParameters:
    """Draw the parameters of `views` (`recipe.views`, or the supervised one) of an image of (height, width).

    A pure function of its arguments: view i depends on (seed, epoch, index, i) and on no other view.
    """
    height, width = image_size
    size = (int(height), int(width))
    boxes, flipped, params, noise, masks = [], [], [], [], []
    for number, view in enumerate(views):
        generator = numpy_generator(seed, epoch, index, number)
        uniforms = generator.random(BOX_UNIFORMS + len(DECISIONS))
        boxes.append(relative(random_box(uniforms[:BOX_UNIFORMS], size, view.scale, recipe.aspect), size))
        chance = dict(zip(DECISIONS, uniforms[BOX_UNIFORMS:].tolist(), strict=True))
        flipped.append(chance["flip"] < recipe.flip)
        params.append(_colour(view, recipe, chance))
        noise.append(_noise(view, params[-1], generator))
        # A generator of its own: masks change no crop and no colour.
        masks.append(draw_mask(view, recipe, numpy_generator(seed, epoch, index, number, "mask")))
    return ViewParameters(
        tuple(view.size for view in views),
        torch.tensor(boxes, dtype=torch.float32),
        torch.tensor(flipped),
        torch.tensor(params, dtype=torch.float32),
        tuple(noise),
        tuple(masks),
    )


def make_views(recipe: Recipe, image: Tensor, parameters: ViewParameters, *, normalized: bool = True) -> list[Tensor]:
    """Cut, colour and normalise: from `image` uint8 (3 h w) a float32 (c size size) for every view.

    c is `recipe.channels`. With `normalized=False` the views stay in 0-1 and get no noise, because noise is in units of
    the normalised view.
    """
    crops = [crop[None] for crop in cut_views(image, parameters)]
    moments, noise = image_moments(recipe, image), None
    if normalized:
        noise = [None if field is None else field[None] for field in parameters.noise]
    views = finish_views(recipe, crops, parameters.params[None], moments, noise, normalized=normalized)
    return [view[0] for view in views]


def cut_views(image: Tensor, parameters: ViewParameters) -> list[Tensor]:
    """Cut, resize and mirror: from `image` uint8 (3 h w) of any size, a uint8 (3 size size) for every view."""
    image_size = (image.shape[-2], image.shape[-1])
    rows = zip(parameters.boxes.tolist(), parameters.size, parameters.flipped.tolist(), strict=True)
    return [crop_resize(image, absolute(box, image_size), size, flip) for box, size, flip in rows]


def largest_reduction(parameters: ViewParameters, image_size: Sequence[int]) -> int:
    """8, 4, 2 or 1: how much smaller an image of (height, width) may be decoded before `cut_views`.

    The result is the largest reduction after which every crop still has at least as many pixels as its view in both
    directions. So no crop is enlarged because of it. If the full image would have to be enlarged for a view, it is 1.
    """
    height, width = image_size
    boxes = parameters.boxes.tolist()
    for reduction in REDUCTIONS:
        reduced = math.ceil(height / reduction), math.ceil(width / reduction)
        shorter = [min(absolute(box, reduced)[2:]) for box in boxes]
        if all(side >= size for side, size in zip(shorter, parameters.size, strict=True)):
            return reduction
    return 1


def finish_views(
    recipe: Recipe,
    crops: Sequence[Tensor],
    params: Tensor,
    moments: Tensor | None = None,
    noise: Sequence[Tensor | None] | None = None,
    *,
    normalized: bool = True,
) -> list[Tensor]:
    """Colour and normalise the crops that `cut_views` cut out of b images, on their device.

    Args:
        crops: for each of v views uint8 (b 3 size size).
        params: (b v p), see `ViewParameters`. Pass it in main memory even if the crops are on a GPU: it is read by the
            CPU, which would otherwise wait for the GPU.
        moments: (b 2) of the images, see `image_moments`.
        noise: v fields (b 1 size size) that are added at the end, or None.
        normalized: False to stay in 0-1.

    Returns:
        For each view float32 (b c size size).
    """
    views: list[Tensor] = list(crops)
    sides = [crop.shape[-1] for crop in crops]
    for side in dict.fromkeys(sides):  # views of the same size are coloured together
        rows = [view for view, other in enumerate(sides) if other == side]
        repeated = None if moments is None else moments.repeat(len(rows), 1)
        batch = torch.cat([crops[row] for row in rows])
        done = _finish(recipe, batch, params[:, rows].transpose(0, 1).flatten(0, 1), repeated, normalized)
        for row, view in zip(rows, done.chunk(len(rows)), strict=True):
            field = None if noise is None else noise[row]
            views[row] = view if field is None else view + field
    return views


def _finish(recipe: Recipe, crops: Tensor, params: Tensor, moments: Tensor | None, normalized: bool) -> Tensor:
    if crops.device.type != "cpu":
        return _finish_together(recipe, crops, params, moments, normalized)
    # One crop after the other, so that each stays in the processor's cache: twice as fast for crops of 224 pixels.
    separate = [None] * len(crops) if moments is None else torch.split(moments, 1)
    rows = zip(torch.split(crops, 1), torch.split(params, 1), separate, strict=True)
    return torch.cat([_finish_together(recipe, crop, row, moment, normalized) for crop, row, moment in rows])


def _finish_together(recipe: Recipe, crops: Tensor, params: Tensor, moments: Tensor | None, normalized: bool) -> Tensor:
    views = to_channels(recipe, apply_color(to_unit(crops), params))
    return normalize(recipe, views, moments) if normalized else views


def _colour(view: ViewRecipe, recipe: Recipe, chance: dict[str, float]) -> list[float]:
    """One row of `params`: the drawn value of every operation that takes place, and the value "off" of the others."""
    row = dict(zip(PARAMS, OFF, strict=True))
    if chance["jitter"] < view.jitter:
        for name, center in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.0)):
            row[name] = center + getattr(recipe, name) * (2 * chance[name] - 1)
        row["order"] = int(chance["order"] * len(ORDERS))
    if chance["blur"] < view.blur:
        low, high = recipe.blur_radius
        row["blur"] = low + (high - low) * chance["blur_radius"]
    row["grayscale"] = float(chance["grayscale"] < view.grayscale)
    row["solarize"] = float(chance["solarize"] < view.solarize)
    row["noise"] = view.noise * chance["noise"]
    return list(row.values())


def _noise(view: ViewRecipe, params: list[float], generator: np.random.Generator) -> Tensor | None:
    deviation = params[PARAMS.index("noise")]
    if deviation == 0:
        return None
    field = generator.standard_normal((1, view.size, view.size), dtype=np.float32)
    return torch.from_numpy(field * np.float32(deviation))
