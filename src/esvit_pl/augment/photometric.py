"""Colour operations on float images (b c h w) in 0-1, RGB, with one parameter for each sample (b,).

They run wherever the tensors are. At equal parameters they are torchvision's functional operations; a sample whose
parameter means "off" (factor 1, hue 0, blur 0, ...) passes unchanged, bit for bit, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

# The columns of `params`, and the value of each that leaves a view alone. `order` is a place in ORDERS.
PARAMS = ("brightness", "contrast", "saturation", "hue", "order", "grayscale", "blur", "solarize", "noise")
OFF = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
ORDERS = tuple(permutations(range(4)))  # every order of brightness, contrast, saturation, hue
SOLARIZE_FROM = 128 / 255


def photometric(image: Tensor, params: Tensor) -> Tensor:
    """Jitter, grayscale, blur, solarise, in the recipe's order.

    Args:
        image: (b 3 h w) in 0-1.
        params: (b p), columns as named in `PARAMS`. `noise` is not applied here: it belongs to the normalised view.
    """
    column = dict(zip(PARAMS, params.unbind(-1), strict=True))
    image = jitter(image, *(column[name] for name in ("brightness", "contrast", "saturation", "hue", "order")))
    image = grayscale(image, column["grayscale"])
    image = gaussian_blur(image, column["blur"])
    return solarize(image, column["solarize"])


def jitter(image: Tensor, brightness_: Tensor, contrast_: Tensor, saturation_: Tensor, hue_: Tensor,
           order: Tensor) -> Tensor:
    """The four operations with their parameters (b,), for each sample in the order `ORDERS[order]`."""
    steps = ((brightness, brightness_, 1.0), (contrast, contrast_, 1.0), (saturation, saturation_, 1.0), (hue, hue_, 0.0))
    active = [(number, *step) for number, step in enumerate(steps) if (step[1] != step[2]).any()]
    sequence = torch.tensor(ORDERS, device=image.device)[order.long()]  # (b 4): which operation comes when
    for turn in sequence.unbind(-1):
        for number, operation, value, off in active:
            # An operation that has another sample's turn gets "off" here.
            image = operation(image, torch.where(turn == number, value, off))
    return image


def brightness(image: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: 0 is black, 1 the image."""
    return _where(factor != 1, lambda x, f: _blend(x, torch.zeros_like(x), f), image, factor)


def contrast(image: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean grey value of the image: 0 is uniform grey, 1 the image."""
    return _where(factor != 1, lambda x, f: _blend(x, luma(x).mean((1, 2, 3), keepdim=True), f), image, factor)


def saturation(image: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image: 0 is grey, 1 the image."""
    return _where(factor != 1, lambda x, f: _blend(x, luma(x), f), image, factor)


def hue(image: Tensor, turn: Tensor) -> Tensor:
    """Turn every colour by `turn` of the colour circle (-0.5 to 0.5); value and saturation stay."""
    return _where(turn != 0, _turn_hue, image, turn)


def grayscale(image: Tensor, on: Tensor) -> Tensor:
    """Three equal channels of luma where `on` is not 0."""
    return _where(on != 0, lambda x, _: luma(x).expand_as(x), image, on)


def solarize(image: Tensor, on: Tensor) -> Tensor:
    """Invert the values from 128/255 on, where `on` is not 0."""
    return _where(on != 0, lambda x, _: torch.where(x >= SOLARIZE_FROM, 1 - x, x), image, on)


def gaussian_blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with standard deviation `sigma` in pixels (Pillow's radius), edges mirrored.

    The kernel reaches `ceil(3 sigma)` pixels to each side, for each sample of its own, so that a sample's result does not
    depend on the others in the batch.
    """
    return _where(sigma > 0, _blur, image, sigma)


def luma(image: Tensor) -> Tensor:
    """(b 3 h w) to (b 1 h w): the grey value, with the weights of ITU-R 601."""
    red, green, blue = image.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def _where(on: Tensor, operation: Callable[[Tensor, Tensor], Tensor], image: Tensor, value: Tensor) -> Tensor:
    """Apply `operation` to the samples where `on`; the others are not computed."""
    rows = on.nonzero()[:, 0]
    if len(rows) == 0:
        return image
    if len(rows) == len(image):
        return operation(image, value)
    return image.index_copy(0, rows, operation(image[rows], value[rows]))


def _blend(image: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    factor = factor[:, None, None, None]
    return (factor * image + (1 - factor) * other).clamp(0, 1)


def _turn_hue(image: Tensor, turn: Tensor) -> Tensor:
    # HSV without S: with value v, chroma c = v - min and hue h in 0-6, the channels are
    # v - c * clamp(min(k, 4 - k), 0, 1) at k = (n + h) mod 6, for n = 5 (red), 3 (green), 1 (blue).
    value, lowest = image.amax(1), image.amin(1)
    chroma = value - lowest
    divisor = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    red, green, blue = image.unbind(1)
    h = torch.where(value == red, (green - blue) / divisor,
                    torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor))
    h = h + 6 * turn[:, None, None]
    k = torch.stack([(n + h) % 6 for n in (5, 3, 1)], dim=1)
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def _blur(image: Tensor, sigma: Tensor) -> Tensor:
    b, c, h, w = image.shape
    reach = torch.ceil(3 * sigma).clamp(max=min(h, w) - 1)  # a mirrored edge must be shorter than the image
    most = int(reach.max())
    offset = torch.arange(-most, most + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2) * (offset.abs() <= reach[:, None])  # (b k)
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(image.dtype).repeat_interleave(c, 0)  # a group for each channel
    x = F.pad(image, [most] * 4, mode="reflect").reshape(1, b * c, h + 2 * most, w + 2 * most)
    x = F.conv2d(x, kernel[:, None, None, :], groups=b * c)
    return F.conv2d(x, kernel[:, None, :, None], groups=b * c).reshape(b, c, h, w)
