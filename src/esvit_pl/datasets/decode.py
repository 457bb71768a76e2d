"""The pixels of an image file: RGB, upright, uint8."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from esvit_pl.datasets.interface import Picture

SHRINKING = ("JPEG", "MPO")  # Pillow's names of formats that can be decoded at 1/2, 1/4 or 1/8; phones write MPO


def decode(path: str) -> Tensor:
    """The picture in a file as uint8 (3 h w), RGB, turned as its EXIF orientation says. A GIF gives its first frame.

    The memory keeps Pillow's order (channels last), with which torch resizes uint8 images fastest.

    Raises:
        ValueError: the file is missing, broken or not an image; the message names it.
    """
    with _naming(path), Image.open(path) as file:
        return _pixels(file)


def as_rgb(image: Image.Image) -> Image.Image:
    """The image converted to RGB; the same object if it is RGB already."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip it at 255 instead of scaling it
        image = Image.fromarray(np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def open_picture(path: str, label: int | None) -> Picture:
    """The picture in a file. It is decoded later if its format can be decoded at a smaller scale."""
    with _naming(path), Image.open(path) as file:
        if file.format not in SHRINKING:
            return Picture.of(_pixels(file), label)
        return Picture(_upright_size(file), label, partial(_shrunk, path))


def _shrunk(path: str, reduction: int) -> Tensor:
    with _naming(path), Image.open(path) as file:
        if reduction > 1:
            file.draft(None, (max(file.width // reduction, 1), max(file.height // reduction, 1)))
        return _pixels(file)


def _upright_size(file: Image.Image) -> tuple[int, int]:
    """(height, width) of the picture as it is shown, without decoding its pixels."""
    lies_on_its_side = file.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)  # the four with a quarter turn
    return (file.width, file.height) if lies_on_its_side else (file.height, file.width)


def _pixels(file: Image.Image) -> Tensor:
    # In place, because copying a large picture takes as long as decoding it.
    ImageOps.exif_transpose(file, in_place=True)
    return torch.from_numpy(np.array(as_rgb(file))).permute(2, 0, 1)


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turn any error inside into a `ValueError` that names the file."""
    try:
        yield
    except Exception as error:  # Pillow's plugins raise many kinds for a broken file
        raise ValueError(f"cannot read the image file '{path}': {type(error).__name__}: {error}") from error
