"""Random resized crops: choosing a box (numbers only), and cutting it out (uint8 in, uint8 out)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TRIES = 10  # boxes tried before the fallback, as in torchvision
Box = tuple[int, int, int, int]  # x, y, width, height in pixels


def random_box(
    uniforms: np.ndarray, image_size: tuple[int, int], scale: tuple[float, float], aspect: tuple[float, float]
) -> Box:
    """The box of a random resized crop, as torchvision draws it.

    The area is uniform in `scale`, the aspect log-uniform in `aspect`. A box that does not fit is drawn again, ten
    times at most. If none fits, the box is the largest central one whose aspect is allowed.

    Args:
        uniforms: `2 * TRIES + 2` numbers in 0-1: area and aspect of every try, then the position along y and x.
        image_size: (height, width).
    """
    height, width = image_size
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for area, shape in uniforms[: 2 * TRIES].reshape(TRIES, 2).tolist():
        target = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        ratio = math.exp(low + (high - low) * shape)
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            along_y, along_x = uniforms[2 * TRIES :].tolist()
            return int(along_x * (width - w + 1)), int(along_y * (height - h + 1)), w, h
    w, h = width, height
    if width / height < aspect[0]:
        h = max(1, round(w / aspect[0]))
    elif width / height > aspect[1]:
        w = max(1, round(h * aspect[1]))
    return (width - w) // 2, (height - h) // 2, w, h


def relative(box: Box, image_size: tuple[int, int]) -> list[float]:
    """x, y, width, height of a pixel box in 0-1, from the image's (height, width)."""
    (x, y, w, h), (height, width) = box, image_size
    return [x / width, y / height, w / width, h / height]


def absolute(box: Sequence[float], image_size: tuple[int, int]) -> Box:
    """The pixel box of a relative one; undoes `relative` exactly, from float32 too, for sides up to a million pixels.

    For an image of another size, each edge of the box is rounded to the nearest pixel.
    """
    (x, y, w, h), (height, width) = box, image_size
    left, top, right, bottom = round(x * width), round(y * height), round((x + w) * width), round((y + h) * height)
    return left, top, right - left, bottom - top


def crop_resize(image: Tensor, box: Box, size: int, flip: bool = False) -> Tensor:
    """Cut `box` out of `image` uint8 (c h w), resize it to (c size size), mirror it left to right if `flip`.

    Bicubic with antialiasing on uint8: equal to torchvision's `resized_crop` to the last bit.
    """
    x, y, w, h = box
    crop = resize(image[:, y : y + h, x : x + w], (size, size))
    return crop.flip(-1) if flip else crop


def resize(image: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """`image` uint8 (c h w) to (c *size), bicubic or bilinear with antialiasing; unchanged if it has that size."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    # torch has fast uint8 kernels for channels last, the layout of decoded images. A slice has to be put into it again.
    batch = image[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(batch, size=size, mode=mode, antialias=True)[0]
