"""Colour operations on float RGB images (b 3 h w) in 0-1, with one parameter for each sample (b,).

They run on the device of the images. Parameters are read in main memory, so pass them there: then the CPU does not wait
for a GPU. With the same parameters the results equal those of torchvision's functional operations. A sample whose
parameter means "off" (factor 1, hue 0, blur 0, ...) is not computed and stays the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

# The columns of `params`, and the value of each that changes nothing. `order` is an index into ORDERS.
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
    params = params.cpu()
    column = dict(zip(PARAMS, params.unbind(-1), strict=True))
    image = jitter(image, *(column[name] for name in ("brightness", "contrast", "saturation", "hue", "order")))
    image = grayscale(image, column["grayscale"])
    image = gaussian_blur(image, column["blur"])
    return solarize(image, column["solarize"])


def jitter(
    image: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor, order: Tensor
) -> Tensor:
    """Brightness, contrast, saturation and hue with their parameters (b,), each sample in its order `ORDERS[order]`."""
    operations = (_brightness, _contrast, _saturation, _turn_hue)
    values = (brightness, contrast, saturation, hue)
    on = [(value != off).tolist() for value, off in zip(values, OFF[:4], strict=True)]
    # Operations that no sample needs are left out of the turns: a recipe with two of them takes two turns, not four.
    used = [number for number in range(4) if any(on[number])]
    sequences = [[number for number in ORDERS[int(place)] if number in used] for place in order.tolist()]
    for turn in range(len(used)):
        for number in used:
            rows = [row for row, sequence in enumerate(sequences) if sequence[turn] == number and on[number][row]]
            image = _on_rows(rows, operations[number], image, values[number])
    return image


def grayscale(image: Tensor, on: Tensor) -> Tensor:
    """Three equal channels of luma where `on` is not 0."""
    return _where(on != 0, lambda x, _: luma(x).expand_as(x), image, on)


def gaussian_blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with standard deviation `sigma` in pixels (Pillow's radius), edges mirrored.

    Each sample has its own kernel, which reaches `ceil(3 sigma)` pixels to each side. So its result does not depend on
    the other samples of the batch.
    """
    return _where(sigma > 0, _blur, image, sigma)


def solarize(image: Tensor, on: Tensor) -> Tensor:
    """Invert the values of 128/255 and above where `on` is not 0."""
    return _where(on != 0, lambda x, _: torch.where(x >= SOLARIZE_FROM, 1 - x, x), image, on)


def luma(image: Tensor) -> Tensor:
    """(b 3 h w) to (b 1 h w): grey values, with the weights of ITU-R 601."""
    red, green, blue = image.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def _where(on: Tensor, operation: Operation, image: Tensor, value: Tensor) -> Tensor:
    return _on_rows([row for row, is_on in enumerate(on.tolist()) if is_on], operation, image, value)


def _on_rows(rows: list[int], operation: Operation, image: Tensor, value: Tensor) -> Tensor:
    """Apply `operation` to the samples in `rows`; the others are not computed."""
    if not rows:
        return image
    if len(rows) == len(image):
        return operation(image, value)
    at = _to_device_of(image, torch.tensor(rows))
    return image.index_copy(0, at, operation(image[at], value[rows]))


def _to_device_of(image: Tensor, numbers: Tensor) -> Tensor:
    return numbers.to(image.device, non_blocking=True)


def _each(image: Tensor, value: Tensor) -> Tensor:
    """(b,) to (b 1 1 1) on the image's device."""
    return _to_device_of(image, value)[:, None, None, None]


def _brightness(image: Tensor, factor: Tensor) -> Tensor:
    return (image * _each(image, factor)).clamp_(0, 1)


def _contrast(image: Tensor, factor: Tensor) -> Tensor:
    return _blend(image, luma(image).mean((1, 2, 3), keepdim=True), factor)


def _saturation(image: Tensor, factor: Tensor) -> Tensor:
    return _blend(image, luma(image), factor)


def _blend(image: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    factor = _each(image, factor)
    return (image * factor).add_(other * (1 - factor)).clamp_(0, 1)


def _turn_hue(image: Tensor, turn: Tensor) -> Tensor:
    # With the hue h in 0-6, each channel is value - chroma * clamp(d, 0, 1), where d is 2 - |h - 3| for red,
    # |h - 2| - 1 for green and |h - 4| - 1 for blue. In-place operations, and no comparisons, because those are slow.
    red, green, blue = image.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - lowest
    divisor = chroma.clamp(min=torch.finfo(image.dtype).tiny)  # grey: the quotient is multiplied by chroma 0 below
    r, g, b = (image - lowest[:, None]).div_(divisor[:, None]).unbind(1)  # 0-1; the largest is exactly 1
    h = torch.lerp((r - g).add_(4), (b - r).add_(2), g.floor())  # where blue is largest; where green is
    h = torch.lerp(h, g - b, r.floor())  # where red is
    h.add_(6 * _to_device_of(image, turn)[:, None, None])
    h.sub_((h / 6).floor_().mul_(6))  # h mod 6
    d = torch.stack([h - center for center in (3, 2, 4)], dim=1).abs_()
    d[:, 0].neg_().add_(2)
    d[:, 1:].sub_(1)
    return torch.addcmul(value[:, None], chroma[:, None], d.clamp_(0, 1), value=-1)


def _blur(image: Tensor, sigma: Tensor) -> Tensor:
    # What is mirrored at an edge must be shorter than the image.
    reach = torch.ceil(3 * sigma).clamp(max=min(image.shape[-2:]) - 1)
    most = int(reach.max())
    offset = torch.arange(-most, most + 1)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2) * (offset.abs() <= reach[:, None])  # (b k)
    kernel = _to_device_of(image, (kernel / kernel.sum(1, keepdim=True)).to(image.dtype))
    padded = F.pad(image, [most] * 4, mode="reflect")
    return _weighted_sum(_weighted_sum(padded, kernel, 3), kernel, 2)


def _weighted_sum(image: Tensor, kernel: Tensor, dim: int) -> Tensor:
    """Correlate every image (b c h w) with its own kernel (b k) along `dim`, which becomes k - 1 pixels shorter.

    The sum of shifted images is many times faster on a CPU than a convolution with a group for each channel.
    """
    length = image.shape[dim] - kernel.shape[1] + 1
    total = torch.zeros_like(image.narrow(dim, 0, length), memory_format=torch.contiguous_format)
    for shift, weight in enumerate(kernel.unbind(1)):
        total.addcmul_(image.narrow(dim, shift, length), weight[:, None, None, None])
    return total
