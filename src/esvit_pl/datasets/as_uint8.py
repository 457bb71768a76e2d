"""A Pillow image, an array, a tensor or a path -> uint8 (3 h w), which every data set here gives."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from esvit_pl.datasets.decode import Told, decode, not_too_large
from esvit_pl.datasets.pixels import PixelRules, upright_tensor

CHANNELS = (1, 3, 4)
CHANNELS_FIRST, CHANNELS_LAST = 0, 2


def as_uint8(image: Any, rules: PixelRules, told: Told | None = None) -> Tensor:
    """The image as uint8 (3 h w), RGB.

    Args:
        image: a Pillow image; a path; a dict with the bytes or the path of a file, as Hugging Face data sets hold it;
            an array or a tensor, grey (h w) or with 1, 3 or 4 channels (RGBA), channels first or last (an image of 3
            rows and 3 columns of channels counts as channels last in an array and first in a tensor). Values are uint8,
            bool, or floats in 0-1.
        rules: how Pillow's modes and files become RGB, and what shows through transparent pixels.
        told: as in `decode`.

    Raises:
        ValueError: the image is something else; the message says what it is.
    """
    if isinstance(image, Mapping) and {"bytes", "path"} & image.keys():
        data = image.get("bytes")
        if data is not None:
            return decode(bytes(data), rules, told)
        image = image.get("path")
    if isinstance(image, (str, os.PathLike)):
        return decode(os.fspath(image), rules, told)
    if isinstance(image, Image.Image):
        return upright_tensor(not_too_large(image, rules), rules)
    if isinstance(image, Tensor):
        numbers = image.detach().cpu()
        return _of_array((numbers.float() if numbers.is_floating_point() else numbers).numpy(), CHANNELS_FIRST, rules)
    if isinstance(image, np.ndarray):
        return _of_array(image, CHANNELS_LAST, rules)
    raise ValueError(f"an image is a Pillow image, an array, a tensor or a path, got {type(image).__name__}")


def _of_array(array: np.ndarray, preferred: int, rules: PixelRules) -> Tensor:
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and _channel_axis(array, preferred) == CHANNELS_FIRST:
        array = np.moveaxis(array, 0, 2)
    if array.ndim != 3 or array.shape[2] not in CHANNELS or 0 in array.shape:
        raise ValueError(
            f"an image has the shape (h w), (h w c) or (c h w) with 1, 3 or 4 channels, got {tuple(array.shape)}"
        )
    array = _bytes(array)
    if array.shape[2] == 4:
        return upright_tensor(Image.fromarray(np.ascontiguousarray(array), "RGBA"), rules)
    return torch.from_numpy(np.repeat(array, 3, 2) if array.shape[2] == 1 else array.copy()).permute(2, 0, 1)


def _channel_axis(array: np.ndarray, preferred: int) -> int:
    axes = (preferred, CHANNELS_LAST - preferred)
    likely = [axis for channels in ((1, 3), (4,)) for axis in axes if array.shape[axis] in channels]
    return likely[0] if likely else preferred


def _bytes(array: np.ndarray) -> np.ndarray:
    """The values as uint8."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if not np.issubdtype(array.dtype, np.floating):
        low, high = array.min(), array.max()
        how = "convert it to uint8" if low >= 0 and high <= 255 else "scale it to floats in 0-1"
        raise ValueError(f"an image holds uint8, or floats in 0-1, got {array.dtype} from {low} to {high}; {how}")
    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # false for NaN, too
        raise ValueError(
            f"an image of floats holds values in 0-1, got {low:.4g} to {high:.4g}; leave normalisation to augment=, or "
            "give uint8"
        )
    found: np.ndarray = np.clip(np.round(array.astype(np.float64) * 255), 0, 255).astype(np.uint8)
    return found
