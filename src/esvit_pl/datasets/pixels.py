"""RGB of 8 bits from a Pillow image of any mode and bit depth, by one rule for each; docs/pixels.md shows the table.

8 bits stay as they are. Of 16-bit values that use their whole range the upper 8 bits are taken. For every other number
something must say which value is black and which is white: the file's own tags, or `PixelRules.value_range`. Where
neither does, the image is refused, because a guess would make it black or white without a word.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what shows the picture upright."""
LEAST_HIGHEST = 1 << 14
"""16-bit values that all lie below it use 14 bits or fewer: the picture would come out nearly black."""


class PixelError(ValueError):
    """Pixels that no rule covers; the message says what came and which setting would tell."""


class UnreadableMetadata(UserWarning):
    """Metadata of an image cannot be read. Its pixels can, and are taken as they lie in the file."""


@dataclass(frozen=True)
class PixelRules:
    """How images become RGB of 8 bits, and which are too large.

    >>> PixelRules(value_range=(0, 4095)).value_range
    (0.0, 4095.0)

    Args:
        value_range: (lo, hi), the values that become 0 and 255 in grey images of more than 8 bits whose file does not
            tell. Values outside are clipped. A range of width 1 or less is for floats, and
            for whole numbers that are no higher.
        background: (r, g, b) in 0-255, what shows through transparent pixels.
        max_pixels: an image of more pixels is refused before it is decoded.

    Raises:
        ValueError: a number out of range.
    """

    value_range: tuple[float, float] | None = None
    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = 100_000_000

    def __post_init__(self) -> None:
        if self.value_range is not None:
            object.__setattr__(self, "value_range", _range(self.value_range))
        colour = _numbers(self.background)
        if len(colour) != 3 or any(value not in range(256) for value in colour):
            raise ValueError(f"background must be three whole numbers in 0-255, got {self.background}")
        object.__setattr__(self, "background", tuple(int(value) for value in colour))
        if not isinstance(self.max_pixels, int) or self.max_pixels < 1:
            raise ValueError(f"max_pixels must be a whole number, 1 or more, got {self.max_pixels}")

    @classmethod
    def among(cls, settings: Mapping[str, Any] | None) -> PixelRules:
        """Those rules that are among the settings of one of our data sets; the others as they are by default."""
        is_ours = str((settings or {}).get("_target_", "")).startswith("esvit_pl.")
        given = settings if settings and is_ours else {}
        return cls(**{rule.name: given[rule.name] for rule in fields(PixelRules) if rule.name in given})


def upright_tensor(image: Image.Image, rules: PixelRules) -> Tensor:
    """The image in RGB as its EXIF orientation shows it, uint8 (3 h w).

    The memory keeps Pillow's order (channels last), with which torch resizes uint8 images fastest.

    Raises:
        PixelError: nothing says which of its values are black and white.
    """
    rgb = as_rgb(image, rules)
    turn = TURNS.get(orientation(image))
    return torch.from_numpy(np.array(rgb if turn is None else rgb.transpose(turn))).permute(2, 0, 1)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1-8; 1 if there is none, and with a warning `UnreadableMetadata` if it cannot be read."""
    try:
        exif, stored = image.getexif(), image.info.get("exif")
        if not exif and stored:  # in a JPEG Pillow has looked for the resolution before, and kept the error to itself
            Image.Exif().load(stored)
        value = exif.get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # Pillow raises many kinds for broken EXIF and XMP
        warnings.warn(f"{type(error).__name__}: {error}", UnreadableMetadata, stacklevel=2)
        return 1
    return int(value) if value in TURNS else 1


def as_rgb(image: Image.Image, rules: PixelRules) -> Image.Image:
    """The image converted to RGB, not turned; the same object if it is RGB already."""
    stored = _Stored.of(image)
    if stored.scrambled:
        raise PixelError(
            "its 16-bit colour channels lie one after the other without compression, and Pillow mixes their bytes up; "
            "save it with interleaved channels (PlanarConfiguration 1)"
        )
    _correct_header(image)
    covered = _covered(image)
    image.load()  # Pillow turns a TIFF while it decodes it, and forgets the orientation then
    if image.mode.startswith(("I", "F")) or stored.signed:
        image = _grey(image, stored, rules)
    elif stored.deep:
        _check_deep_colour(image, stored, rules)
    elif stored.narrow_palette is not None:
        image.putpalette(stored.narrow_palette)
    if image.has_transparency_data:
        return _laid_over(image, rules.background)
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if covered is None:
        return rgb
    canvas = Image.new("RGB", rgb.size, rules.background)
    canvas.paste(rgb.crop(covered), covered)
    return canvas


def _covered(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The part of a GIF's canvas that its first picture covers, if it leaves a part uncovered; None for other images.

    Pillow gives the rest the first colour of the palette, whichever that is, unless the picture has a transparent one.
    """
    tiles = getattr(image, "tile", ()) if image.format == "GIF" else ()
    whole = (0, 0, *image.size)
    return next((tile[1] for tile in tiles if tile[1] != whole), None)


def _correct_header(image: Image.Image) -> None:
    """Where Pillow tells its decoders something wrong, before they begin."""
    tiles = [(tile, str(_first(tile[3]))) for tile in getattr(image, "tile", ())]
    key: Any = image.info.get("transparency")
    if isinstance(image, TiffImageFile):
        # libtiff gives numbers in the machine's order of bytes; Pillow knows that of unsigned 16 bits alone.
        image.tile = [
            tile._replace(args=(re.sub(r";(16|32)B", r";\1N", raw), *tile.args[1:])) if tile[0] == "libtiff" else tile
            for tile, raw in tiles
        ]
    elif tiles and image.format == "PNG" and key is not None:
        # The transparent value has the bits of the file, and is compared with pixels of 8.
        raw = tiles[0][1]
        if raw in ("L;2", "L;4"):
            image.info["transparency"] = key * 255 // (2 ** int(raw[2:]) - 1)
        elif raw == "RGB;16B":
            image.info["transparency"] = tuple(value >> 8 for value in key)


def rule_of(image: Image.Image, rules: PixelRules) -> str:
    """The rule that `as_rgb` would take for an image that is not decoded yet, in a few words."""
    stored, words = _Stored.of(image), []
    if image.mode.startswith(("I", "F")) or stored.signed:
        limits = stored.limits or _given(image.mode, rules)
        origin = "the file's tags" if stored.limits else "value_range"
        whole = f"upper 8 of {16 - stored.moved} bits"
        is_whole = limits is None or limits == (0.0, float(65535 >> stored.moved))
        words.append(whole if limits is None or is_whole else f"{limits[0]:g}-{limits[1]:g} by {origin}")
        if stored.white_is_zero:
            words.append("inverted")
    elif stored.deep:
        words.append("upper 8 of 16 bits")
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        words.append(f"{image.mode} converted")
    if image.has_transparency_data:
        words.append("alpha over the background")
    elif _covered(image):
        words.append("uncovered canvas in the background's colour")
    return ", ".join(words)


class _Stored(NamedTuple):
    """What the file says of its values. Pillow forgets a part of it while it decodes, so it is asked before."""

    bits: int = 8
    signed: bool = False
    white_is_zero: bool = False
    limits: tuple[float, float] | None = None
    """The values of black and white, from the file."""
    deep: bool = False
    """Colour of 16 bits, of which Pillow gives the upper 8."""
    moved: int = 0
    """Pillow has moved the values up by so many bits, to fill 16."""
    scrambled: bool = False
    narrow_palette: list[int] | None = None
    """RGB, RGB, ...: a TIFF's palette whose 16-bit numbers only use the lower 8."""

    @classmethod
    def of(cls, image: Image.Image) -> _Stored:
        is_grey = image.mode.startswith(("I", "F"))
        codec, raw, highest = "", "", None
        for tile in getattr(image, "tile", ())[:1]:
            told = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
            codec, raw, highest = tile[0], str(told[0]), told[-1]
        if hasattr(image, "tag_v2"):
            return cls._of_tiff(image.mode, image.tag_v2, codec)
        if image.format == "JPEG2000":
            bits = _bits_of_jpeg_2000(image)
            return cls(
                16 if is_grey else 8, moved=16 - bits if is_grey and bits else 0, deep=bits == 16 and not is_grey
            )
        if image.mode == "I" and image.format == "PPM":
            # Pillow scales the values of a PGM to 16 bits, unless its header says that they have as many.
            is_told = codec.startswith("ppm") and highest != 65535
            return cls(16, limits=(0.0, 65535.0) if is_told else None)
        bits = 16 if image.mode.startswith("I;16") else 32 if is_grey else 8
        is_deep_raw = ";16" in raw and raw != "BGR;16"  # that is a BMP of 5, 6 and 5 bits
        deep = is_deep_raw or (codec.startswith("ppm") and highest == 65535)
        return cls(bits, signed=image.mode == "I", deep=deep and not is_grey)

    @classmethod
    def _of_tiff(cls, mode: str, tags: Any, codec: str) -> _Stored:
        bits, signed = _first(tags.get(258)) or 1, _first(tags.get(339)) == 2
        is_grey = mode.startswith(("I", "F")) or signed
        return cls(
            bits,
            signed,
            # Pillow inverts values of 8 bits and fewer itself.
            white_is_zero=bits > 8 and tags.get(262) == 0,
            limits=_limits(tags, bits, unsigned=not signed and mode != "F"),
            deep=bits == 16 and not is_grey,
            scrambled=bits == 16 and not is_grey and tags.get(284) == 2 and codec == "raw",
            narrow_palette=_narrow_palette(tags) if mode in ("P", "PA") else None,
        )


def _bits_of_jpeg_2000(image: Any) -> int:
    """As the codestream's first marker says; 0 if it is not found, or the image is decoded already."""
    if not image.tile:
        return 0
    image.fp.seek(0)
    start = image.fp.read(1 << 20)
    marker = start.find(b"\xff\x4f\xff\x51")
    return min((start[marker + 42] & 127) + 1, 16) if 0 <= marker < len(start) - 42 else 0


def _limits(tags: Any, bits: int, *, unsigned: bool) -> tuple[float, float] | None:
    """Black and white from a TIFF's tags: SMinSampleValue and SMaxSampleValue, Min- and MaxSampleValue, or its bits."""
    for low, high in ((340, 341), (280, 281)):
        lo, hi = _first(tags.get(low)), _first(tags.get(high))
        if lo is None and unsigned:
            lo = 0
        if isinstance(lo, Real) and isinstance(hi, Real) and np.isfinite([float(lo), float(hi)]).all() and lo < hi:
            return float(lo), float(hi)
    return (0.0, float(2**bits - 1)) if unsigned and 8 < bits < 16 else None


def _narrow_palette(tags: Any) -> list[int] | None:
    colours = np.asarray(tags.get(320, ()))
    if not len(colours) or colours.max() > 255 or colours.max() == 0:
        return None
    palette: list[int] = colours.reshape(3, -1).T.flatten().tolist()
    return palette


def _grey(image: Image.Image, stored: _Stored, rules: PixelRules) -> Image.Image:
    """Grey of more than 8 bits, or with a sign, in 8 bits; with alpha if one value stands for transparent."""
    values = np.asarray(image)
    if stored.signed and stored.bits == 8:
        values = values.view(np.int8)
    elif image.mode == "I" and not stored.signed and stored.bits == 32:
        values = values.view(np.uint32)  # Pillow has no unsigned 32 bits: values from 2 ** 31 on arrive negative
    values = values >> stored.moved if stored.moved else values
    white = float(65535 >> stored.moved)
    limits = stored.limits or _given(image.mode, rules, int(values.max(initial=0)) if image.mode != "F" else 0)
    unsigned_16 = not stored.signed and stored.bits == 16
    if limits is None and not unsigned_16:
        raise PixelError(_no_range(values, stored, image.mode))
    if limits is None and 0 < values.max(initial=0) < LEAST_HIGHEST >> stored.moved:
        likely = 2 ** int(values.max()).bit_length() - 1
        raise PixelError(
            f"its values of {16 - stored.moved} bits go from {values.min()} to {values.max()}, and the file does not "
            f"say which of them is white; {_advice(0, likely)}, or dataset.value_range=[0,{white:g}] if it is that dark"
        )
    if limits in (None, (0.0, white)) and unsigned_16:
        levels = (values.astype(np.int64) >> 8 - stored.moved).astype(np.uint8)
    else:
        assert limits is not None
        levels = _scaled(values, *limits)
    if stored.white_is_zero:
        levels = 255 - levels
    grey = Image.fromarray(levels)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _given(mode: str, rules: PixelRules, highest: float = np.inf) -> tuple[float, float] | None:
    """The range that the user gives; one of width 1 or less is meant for floats, and for masks of 0 and 1."""
    given = rules.value_range
    is_for_floats = given is not None and given[1] - given[0] <= 1 and highest > given[1]
    return None if is_for_floats and mode != "F" else given


def _scaled(values: np.ndarray, lo: float, hi: float) -> np.ndarray:
    """`lo` to 0, `hi` to 255, clipped; what is no number becomes 0."""
    unit = (values.astype(np.float64) - lo) / (hi - lo)
    levels: np.ndarray = np.round(255 * np.clip(np.nan_to_num(unit, nan=0.0, posinf=1.0, neginf=0.0), 0, 1))
    return levels.astype(np.uint8)


def _check_deep_colour(image: Image.Image, stored: _Stored, rules: PixelRules) -> None:
    """Refuse 16-bit colour that uses 14 bits or fewer: Pillow has dropped the lower 8 of them."""
    extrema: Any = image.getextrema()
    highest = max(high for _, high in extrema[:3])
    told = stored.limits is not None and stored.limits[1] < LEAST_HIGHEST
    if told or (0 < highest < LEAST_HIGHEST >> 8 and rules.value_range != (0.0, 65535.0)):
        raise PixelError(
            "its colours use 14 of their 16 bits or fewer, and Pillow reads the upper 8 alone; save it with 8 bits "
            "or over the whole range, or set dataset.value_range=[0,65535] if it is that dark"
        )


def _laid_over(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    colours = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    alpha = colours.getchannel("A")
    if alpha.getextrema()[0] == 255 or (image.format == "BMP" and alpha.getextrema()[1] == 0):
        # Programs that know no alpha leave its place in a BMP empty.
        return colours.convert("RGB")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(colours, mask=alpha)
    return canvas


def _no_range(values: np.ndarray, stored: _Stored, mode: str) -> str:
    finite = values[np.isfinite(values)]
    kind = "floats" if mode == "F" else f"{'signed' if stored.signed else 'unsigned'} whole numbers"
    lo, hi = (finite.min(), finite.max()) if finite.size else (0, 0)
    strange = f" ({values.size - finite.size:,} are not finite)" if finite.size < values.size else ""
    return (
        f"its values are {kind} of {stored.bits} bits from {lo:g} to {hi:g}{strange}, and the file does not say which "
        f"of them are black and white; {_advice(lo, hi)}"
    )


def _advice(lo: float, hi: float) -> str:
    example = f", such as dataset.value_range=[{lo:g},{hi:g}] for this one" if lo < hi else ""
    return f"set dataset.value_range=[lo,hi] for all images{example}"


def _range(given: Any) -> tuple[float, float]:
    numbers = _numbers(given)
    if len(numbers) != 2 or not np.isfinite(numbers).all() or not numbers[0] < numbers[1]:
        raise ValueError(f"value_range must be two numbers [lo,hi], lo below hi, got {given}")
    return float(numbers[0]), float(numbers[1])


def _numbers(given: Any) -> list[Any]:
    numbers = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else []
    return numbers if all(isinstance(number, Real) for number in numbers) else []


def _first(value: Any) -> Any:
    """A tag's number, or the first of them."""
    return (value[0] if value else None) if isinstance(value, tuple) else value
