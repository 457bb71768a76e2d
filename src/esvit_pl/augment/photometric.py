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

Operation = Callable[[Tensor, Tensor], Tensor]  # (rows 3 h w) and their parameter (rows,) -> (rows 3 h w)


def apply_color(image: Tensor, params: Tensor) -> Tensor:
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


def jitter(
    image: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor, order: Tensor
) -> Tensor:
    """The four operations with their parameters (b,), for each sample in the order `ORDERS[order]`."""
    operations = (_brightness, _contrast, _saturation, _turn_hue)
    values = (brightness, contrast, saturation, hue)
    on = [(value != off).tolist() for value, off in zip(values, OFF[:4], strict=True)]
    # Operations that no sample wants take no turn, so that a recipe with two of them takes two turns and not four.
    used = [number for number in range(4) if any(on[number])]
    sequences = [[number for number in ORDERS[int(place)] if number in used] for place in order.tolist()]
    for turn in range(len(used)):
        for number in used:
            rows = [row for row, sequence in enumerate(sequences) if sequence[turn] == number and on[number][row]]
            image = _on_rows(rows, operations[number], image, values[number])
    return image


def adjust_brightness(image: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: 0 is black, 1 the image."""
    return _where(factor != 1, _brightness, image, factor)


def adjust_contrast(image: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean grey value of the image: 0 is uniform grey, 1 the image."""
    return _where(factor != 1, _contrast, image, factor)


def adjust_saturation(image: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image: 0 is grey, 1 the image."""
    return _where(factor != 1, _saturation, image, factor)


def adjust_hue(image: Tensor, turn: Tensor) -> Tensor:
    """Turn every colour by `turn` of the colour circle (-0.5 to 0.5); value and saturation stay."""
    return _where(turn != 0, _turn_hue, image, turn)


def grayscale(image: Tensor, on: Tensor) -> Tensor:
    """Three equal channels of luma where `on` is not 0."""
    return _where(on != 0, lambda x, _: luma(x).expand_as(x), image, on)


def gaussian_blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with standard deviation `sigma` in pixels (Pillow's radius), edges mirrored.

    The kernel reaches `ceil(3 sigma)` pixels to each side, for each sample its own, so that a sample's result does not
    depend on the others in the batch.
    """
    return _where(sigma > 0, _blur, image, sigma)


def solarize(image: Tensor, on: Tensor) -> Tensor:
    """Invert the values from 128/255 on, where `on` is not 0."""
    return _where(on != 0, lambda x, _: torch.where(x >= SOLARIZE_FROM, 1 - x, x), image, on)


def luma(image: Tensor) -> Tensor:
    """(b 3 h w) to (b 1 h w): the grey value, with the weights of ITU-R 601."""
    red, green, blue = image.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def _where(on: Tensor, operation: Operation, image: Tensor, value: Tensor) -> Tensor:
    return _on_rows([row for row, it in enumerate(on.tolist()) if it], operation, image, value)


def _on_rows(rows: list[int], operation: Operation, image: Tensor, value: Tensor) -> Tensor:
    """Apply `operation` to the samples in `rows`; the others are not computed."""
    if not rows:
        return image
    if len(rows) == len(image):
        return operation(image, value)
    at = torch.tensor(rows, device=image.device)
    return image.index_copy(0, at, operation(image[at], value[at]))


def _blend(image: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    factor = factor[:, None, None, None]
    return (factor * image + (1 - factor) * other).clamp(0, 1)


def _brightness(image: Tensor, factor: Tensor) -> Tensor:
    return _blend(image, 0.0, factor)


def _contrast(image: Tensor, factor: Tensor) -> Tensor:
    return _blend(image, luma(image).mean((1, 2, 3), keepdim=True), factor)


def _saturation(image: Tensor, factor: Tensor) -> Tensor:
    return _blend(image, luma(image), factor)


def _turn_hue(image: Tensor, turn: Tensor) -> Tensor:
    # HSV without S: with value v, chroma c = v - min and hue h in 0-6, the channels are
    # v - c * clamp(min(k, 4 - k), 0, 1) at k = (n + h) mod 6, for n = 5 (red), 3 (green), 1 (blue).
    value, lowest = image.amax(1), image.amin(1)
    chroma = value - lowest
    divisor = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    red, green, blue = image.unbind(1)
    h = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
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
