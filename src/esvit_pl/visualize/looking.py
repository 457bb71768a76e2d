"""A backbone looks at a whole image: prepared for it, and with places in pixels of the image as it came."""

# c channels | h, w rows and columns of a map | x, y pixels from the left and from the top

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from esvit_pl.augment import EvaluationTransform
from esvit_pl.backbones import Backbone
from esvit_pl.datasets import decode
from esvit_pl.isolation import undisturbed, untracked

T = TypeVar("T")
Picture = str | Path | Image.Image | Tensor
"""A file, an image of PIL, a uint8 tensor (3 h w), or a float tensor (c h w) that is prepared already."""
Point = tuple[float, float]
"""x, y in pixels."""


def looked_at(
    backbone: Backbone,
    image: Picture,
    look: Callable[[Tensor], T],
    *,
    side: int | None = None,
    transform: EvaluationTransform | None = None,
) -> tuple[T, tuple[int, int]]:
    """What `look` makes of the prepared image (1 c h w), in eval mode and without gradients; and the image's (h, w).

    The whole image is resized until its shorter side has `side` pixels (None: the backbone's own size) and both sides
    fall into whole regions. Random generators and the modes of the backbone stay as they are.

    Args:
        transform: how images are prepared; None: `backbone.transform`.

    Raises:
        ValueError: nothing says how to prepare images for the backbone.
    """
    if isinstance(image, Tensor) and image.is_floating_point():
        with still(backbone):
            return look(image[None].to(device_of(backbone))), (image.shape[-2], image.shape[-1])
    transform = transform_of(backbone, transform)
    image = bytes_of(image, transform)
    with still(backbone):
        square = transform(torch.zeros(3, 32, 32, dtype=torch.uint8))[None].to(device_of(backbone))
        multiple = math.ceil(square.shape[-1] / backbone(square).grid[0])
        prepared = transform.whole(image, side=side, multiple=multiple)[None]
        return look(prepared.to(device_of(backbone))), (image.shape[-2], image.shape[-1])


def still(backbone: Any) -> AbstractContextManager[None]:
    """Eval mode, no gradients, and random generators put back; a function of somebody's has no mode."""
    return undisturbed(backbone) if isinstance(backbone, nn.Module) else untracked()


def device_of(backbone: Any) -> torch.device:
    """Where the network's weights are."""
    weights = backbone.parameters() if isinstance(backbone, nn.Module) else iter(())
    return next((weight.device for weight in weights), torch.device("cpu"))


def transform_of(backbone: Any, given: EvaluationTransform | None) -> EvaluationTransform:
    """The transform that is given, or else the backbone's own."""
    found = getattr(backbone, "transform", None) if given is None else given
    if not isinstance(found, EvaluationTransform):
        raise ValueError(
            "nothing says how images are prepared for this backbone; give transform= "
            "esvit_pl.augment.EvaluationTransform(recipe), or set backbone.transform"
        )
    return found


def bytes_of(image: Picture, transform: EvaluationTransform) -> Tensor:
    """uint8 (3 h w) of a file or an image of PIL, read as the transform reads images."""
    return decode(str(image), transform.pixels) if isinstance(image, str | Path) else transform.as_tensor(image)


def cell_of(point: Point, size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """(row, column) of the cell of a map in which a point of the image lies.

    >>> cell_of((199, 0), size=(100, 200), grid=(7, 14))
    (0, 13)

    Args:
        point: x, y.
        size: (h, w) of the image in pixels.
        grid: (h, w) of the map.

    Raises:
        ValueError: the point lies outside the image.
    """
    x, y = point
    height, width = size
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"the point [{x:g}, {y:g}] lies outside the image of {width} x {height} pixels (x, y)")
    return int(y / height * grid[0]), int(x / width * grid[1])
