"""The pixels of an image file: RGB, upright, uint8."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, TypeVar

import PIL
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, PHOTOMETRIC_INTERPRETATION, ImageFileDirectory_v2
from torch import Tensor

from esvit_pl.datasets.interface import Label, Picture
from esvit_pl.datasets.metadata import without_metadata
from esvit_pl.datasets.pillow_settings import PillowSettings
from esvit_pl.datasets.pixels import PixelError, PixelRules, UnreadableMetadata, orientation, rule_of, upright_tensor
from esvit_pl.safe_text import for_terminal

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Pillow's names of the formats that are read, whatever a file is called. Others are not tried: Pillow would start
Ghostscript for PostScript."""
SHRINKING = ("JPEG", "MPO")  # formats that can be decoded at 1/2, 1/4 or 1/8; phones write MPO

Told = Callable[[str], None]
T = TypeVar("T")


def decode(path: str | bytes, rules: PixelRules | None = None, told: Told | None = None) -> Tensor:
    """The picture in a file, or in its bytes, as uint8 (3 h w), RGB, turned as its EXIF orientation says.

    A file of several pictures gives its first.

    Args:
        rules: of `datasets.pixels`: value range, background, largest image.
        told: called with a sentence if metadata cannot be read; by default it becomes a warning `UnreadableMetadata`.

    Raises:
        ValueError: the file is missing, broken, not an image, too large, or no rule covers its pixels; the message
            names it.
    """
    rules = rules or PixelRules()
    return _read(path, rules, told, partial(_pixels, rules))


def open_picture(path: str, label: Label | None, rules: PixelRules | None = None, told: Told | None = None) -> Picture:
    """The picture in a file. It is decoded later if its format can be decoded at a smaller scale."""
    rules = rules or PixelRules()

    def look(file: Image.Image) -> Picture:
        if file.format not in SHRINKING:
            return Picture.of(_pixels(rules, file), label)
        return Picture(_upright_size(file), label, shrunk)

    def shrunk(reduction: int) -> Tensor:
        return _read(path, rules, told, partial(_pixels, rules, reduction=reduction))

    return _read(path, rules, told, look)


class Look(NamedTuple):
    """A picture, and how its file holds it."""

    pixels: Tensor
    """uint8 (3 h w)."""
    kind: str
    """Pillow's names of format and mode, such as "PNG, RGBA"."""
    rule: str
    """How it became RGB; empty if it was so already, or grey or paletted."""


def look(path: str, rules: PixelRules, told: Told) -> Look:
    """`decode`, with what there is to know about the file."""

    def seen(file: Image.Image) -> Look:
        kind, rule = f"{file.format}, {file.mode}", rule_of(file, rules)
        return Look(_pixels(rules, file), kind, rule)

    return _read(path, rules, told, seen)


def size_of(path: str, rules: PixelRules | None = None) -> tuple[int, int]:
    """(height, width) of the picture in a file as it is shown, from its header.

    Raises:
        ValueError: as `decode`, as far as a header tells.
    """
    return _read(path, rules or PixelRules(), lambda sentence: None, _upright_size)


def _read(path: str | bytes, rules: PixelRules, told: Told | None, use: Callable[[Image.Image], T]) -> T:
    """``use(image)`` of the opened file; without its metadata if they stand in the way."""
    name = f"'{for_terminal(path)}'" if isinstance(path, str) else f"<{len(path):,} bytes>"
    with _naming(path, name):
        if isinstance(path, str):
            _check_is_a_file(path)
        with PillowSettings() as heard:
            start = len(heard)
            try:
                with Image.open(path if isinstance(path, str) else BytesIO(path), formats=FORMATS) as file:
                    result = use(not_too_large(file, rules))
                notes = [str(note.message) for note in heard[start:] if issubclass(note.category, UserWarning)]
            except (PixelError, MemoryError):
                raise
            except Exception as error:
                bare = without_metadata(Path(path).read_bytes() if isinstance(path, str) else path)
                if bare is None:
                    raise
                try:
                    with Image.open(BytesIO(bare), formats=FORMATS) as file:
                        result = use(not_too_large(file, rules))
                except PixelError:
                    raise
                except Exception:
                    raise error from None
                unknown = isinstance(error, UnidentifiedImageError)  # Pillow says no more than that
                notes = ["Pillow stops at it" if unknown else f"{type(error).__name__}: {error}"]
    if notes:
        (told or _warn)(
            f"the metadata of {name} cannot be read ({for_terminal(notes[0])}); its pixels are taken as they lie there"
        )
    return result


def _pixels(rules: PixelRules, file: Image.Image, reduction: int = 1) -> Tensor:
    if reduction > 1:
        file.draft(None, (max(file.width // reduction, 1), max(file.height // reduction, 1)))
    return upright_tensor(file, rules)


def _upright_size(file: Image.Image) -> tuple[int, int]:
    """(height, width) of the picture as it is shown, without decoding its pixels."""
    # The four with a quarter turn; Pillow gives the size of a TIFF as it is shown.
    lies_on_its_side = file.format != "TIFF" and orientation(file) in (5, 6, 7, 8)
    return (file.width, file.height) if lies_on_its_side else (file.height, file.width)


def _check_is_a_file(path: str) -> None:
    """A pipe would be waited for, for ever."""
    status = os.stat(path)
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise PixelError(f"it is {kinds.get(kind, 'a device')}, not a file")
    if status.st_size == 0:
        raise PixelError("the file is empty")


def not_too_large(file: Image.Image, rules: PixelRules) -> Image.Image:
    pixels = file.width * file.height
    if pixels > rules.max_pixels:
        raise PixelError(
            f"it has {file.width:,} x {file.height:,} = {pixels:,} pixels, and dataset.max_pixels={rules.max_pixels} "
            "allows fewer; raise it, or make the image smaller"
        )
    return file


@contextmanager
def _naming(path: str | bytes, name: str) -> Iterator[None]:
    """Turn any error inside into a `ValueError` that names the file."""
    try:
        yield
    except MemoryError:
        raise
    except PixelError as error:
        raise ValueError(f"cannot read the image file {name}: {for_terminal(str(error))}") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot read the image file {name}: {type(error).__name__}: {_what_it_is(path)}") from error
    except Exception as error:  # Pillow's plugins raise many kinds for a broken file
        raise ValueError(
            f"cannot read the image file {name}: {type(error).__name__}: {for_terminal(str(error))}"
        ) from error


def _what_it_is(path: str | bytes) -> str:
    """A file that Pillow does not recognise, in words: a kind of TIFF that it does not read, or its first bytes."""
    with BytesIO(path) if isinstance(path, bytes) else open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = file.read(8)
        try:
            tags = ImageFileDirectory_v2(start)
            file.seek(tags.next)
            tags.load(file)
            if not {IMAGEWIDTH, IMAGELENGTH, PHOTOMETRIC_INTERPRETATION} <= set(tags):
                return "a TIFF whose list of tags is missing or cut off: the file is not whole"
            bits, sample_format = tags.get(258, (1,)), tags.get(339, (1,))
            return (
                f"a TIFF that Pillow {PIL.__version__} does not read: BitsPerSample {bits}, SampleFormat "
                f"{sample_format}, PhotometricInterpretation {tags.get(262)}; save it as RGB of 8 bits, or as grey "
                "whose 0 is black, of 8 or 16 bits or 32-bit floats"
            )
        except Exception:
            return f"its format is not one of {', '.join(FORMATS)}, or its header is broken; it begins with {start!r}"


def _warn(sentence: str) -> None:
    warnings.warn(sentence, UnreadableMetadata, stacklevel=4)
