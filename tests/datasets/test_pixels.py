"""One row for each of Pillow's modes and bit depths: what is in the file, and which RGB comes out."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from esvit_pl.augment import EvaluationTransform, Recipe
from esvit_pl.datasets import PixelRules, decode, folder
from esvit_pl.datasets.pixels import as_rgb

LEVELS = np.array([[0, 64], [128, 255]], dtype=np.uint8)
DEEP = LEVELS.astype(np.uint16) * 257  # the same picture over the whole range of 16 bits
SIGNED = (DEEP.astype(int) - 32768).astype(np.int16)
TWELVE = np.round(LEVELS / 255 * 4095).astype(np.uint16)
PACKED_12 = np.array([[a >> 4, (a & 15) << 4 | b >> 8, b & 255] for a, b in TWELVE.tolist()], dtype=np.uint8)
COLOURS = np.stack([LEVELS, LEVELS.T, LEVELS[::-1]], axis=-1)
SAMPLE_FORMATS = {"u": 1, "i": 2, "f": 3}


def tiff(values: np.ndarray, *, order: str = "<", photometric: int | None = None, **tags: Any) -> bytes:
    """A TIFF of (h w) or (h w c), uncompressed but for t259=8 (zip).

    `tags` as t<number>=value: floats as DOUBLE, whole numbers as SHORT or LONG, bytes as ASCII.
    """
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    pixels = values.astype(values.dtype.newbyteorder(order)).tobytes()
    pixels = zlib.compress(pixels) if tags.get("t259") == 8 else pixels
    bits, photometric = 8 * values.dtype.itemsize, (2 if channels > 1 else 1) if photometric is None else photometric
    entries: dict[int, tuple[str, list[Any]]] = {
        256: ("H", [width]),
        257: ("H", [height]),
        258: ("H", [bits] * channels),
        259: ("H", [1]),
        262: ("H", [photometric]),
        273: ("I", [8]),
        277: ("H", [channels]),
        278: ("H", [height]),
        279: ("I", [len(pixels)]),
        339: ("H", [SAMPLE_FORMATS[values.dtype.kind]] * channels),
    }
    for name, value in tags.items():
        numbers = value if isinstance(value, list) else [value]
        first = numbers[0]
        number = "d" if isinstance(first, float) else "c" if isinstance(first, bytes) else ""
        entries[int(name[1:])] = (number or ("H" if max(numbers) < 65536 else "I"), numbers)
    types = {"c": 2, "H": 3, "I": 4, "d": 12}
    start, extra, rows = 8 + len(pixels) + len(pixels) % 2, b"", b""
    behind = start + 2 + 12 * len(entries) + 4
    for tag, (kind, numbers) in sorted(entries.items()):
        body = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        if len(body) > 4:
            place = struct.pack(f"{order}I", behind + len(extra))
            extra += body + b"\0" * (len(body) % 2)
        else:
            place = body.ljust(4, b"\0")
        rows += struct.pack(f"{order}HHI", tag, types[kind], len(numbers)) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    count = struct.pack(f"{order}H", len(entries))
    return head + pixels + b"\0" * (len(pixels) % 2) + count + rows + b"\0" * 4 + extra


def png(values: np.ndarray, bits: int, colour: int, *, width: int | None = None, **chunks: bytes) -> bytes:
    """A PNG of (h w) or (h w c) with further chunks before the pixels."""
    height, width = len(values), width or values.shape[1]
    rows = values.reshape(height, -1).astype(">u2" if bits == 16 else "u1")
    parts = {
        "IHDR": struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0),
        **chunks,
        "IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)),
        "IEND": b"",
    }
    packed = [struct.pack(">I", len(body)) + name.encode() + body for name, body in parts.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(part + struct.pack(">I", zlib.crc32(part[4:])) for part in packed)


def separate(values: np.ndarray) -> bytes:
    """A TIFF whose channels lie one after the other (PlanarConfiguration 2)."""
    size = values[..., 0].nbytes
    places = [8 + size * channel for channel in range(3)]
    whole = tiff(values, t284=2, t273=places, t279=[size] * 3)
    return whole[:8] + values.transpose(2, 0, 1).tobytes() + whole[8 + values.nbytes :]


def jpeg_2000(values: np.ndarray, bits: int) -> bytes:
    """A grey codestream of so many bits: Pillow writes 16, and the values lie around their middle."""
    moved = Image.fromarray((values.astype(int) + 32768 - (1 << bits - 1)).astype(np.uint16))
    data = bytearray(saved(moved, "JPEG2000", irreversible=False, no_jp2=True))
    data[42] = bits - 1
    return bytes(data)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey(levels: Any) -> np.ndarray:
    return np.repeat(np.asarray(levels, dtype=np.uint8)[..., None], 3, axis=-1)


def read(tmp_path: Any, data: bytes, rules: PixelRules | None = None) -> np.ndarray:
    path = tmp_path / "picture"
    path.write_bytes(data)
    return decode(str(path), rules).permute(1, 2, 0).numpy()


ALPHA = np.array([[255, 128], [0, 255]], dtype=np.uint8)
OVER_WHITE = grey([[0, 159], [255, 255]])  # 64 at one half: 64 * 128 / 255 + 255 * 127 / 255
OVER_BLACK = grey([[0, 32], [0, 255]])
PREMULTIPLIED = (LEVELS.astype(int) * ALPHA // 255).astype(np.uint8)
NUMBERS = np.arange(4, dtype=np.uint8).reshape(2, 2)
BLACK_WHITE = grey([[0, 0], [255, 255]])


def paletted(mode: str = "RGB", palette: Sequence[int] = np.repeat(LEVELS.flatten(), 3).tolist()) -> Image.Image:
    image = Image.frombytes("P", (2, 2), NUMBERS.tobytes())
    image.putpalette(list(palette), mode)
    return image


def lab() -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    made = ImageCms.profileToProfile(Image.fromarray(grey(LEVELS)), *profiles, outputMode="LAB")
    assert made is not None
    return made


def array(mode: str, values: np.ndarray) -> Image.Image:
    return Image.frombytes(mode, (values.shape[1], values.shape[0]), values.tobytes())


IN_FILES: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {
    # 8 bits and fewer: as they are
    "1": (lambda: saved(Image.fromarray(LEVELS > 100), "PNG"), BLACK_WHITE),
    "1, WhiteIsZero": (lambda: tiff(np.array([[0x40], [0x80]], "u1"), photometric=0, t256=2, t258=1), grey(
        [[255, 0], [0, 255]]
    )),
    "L of 2 bits": (lambda: png(np.array([[0x10], [0xB0]]), 2, 0, width=2), grey([[0, 85], [170, 255]])),
    "L": (lambda: saved(Image.fromarray(LEVELS), "PNG"), grey(LEVELS)),
    "L, WhiteIsZero": (lambda: tiff(LEVELS, photometric=0), grey(255 - LEVELS)),
    "RGB": (lambda: saved(Image.fromarray(COLOURS), "PNG"), COLOURS),
    "RGB, TIFF": (lambda: tiff(COLOURS), COLOURS),
    "RGB, TIFF, channels apart": (lambda: separate(COLOURS), COLOURS),
    "RGBX": (lambda: tiff(np.dstack([COLOURS, ALPHA]), t338=0), COLOURS),
    "P": (lambda: saved(paletted(), "PNG"), grey(LEVELS)),
    "P, TIFF": (lambda: saved(paletted(), "TIFF"), grey(LEVELS)),
    "P, TIFF, 8 bits in the palette's 16": (
        lambda: tiff(NUMBERS, photometric=3, t320=[*LEVELS.flatten().tolist(), *[0] * 252] * 3),
        grey(LEVELS),
    ),
    "CMYK": (lambda: saved(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"), COLOURS),
    "CMYK, Adobe's inverted JPEG": (lambda: saved(Image.new("CMYK", (2, 2)), "JPEG"), grey([[255, 255]] * 2)),
    "YCbCr": (lambda: saved(Image.fromarray(grey(LEVELS)).convert("YCbCr"), "TIFF"), grey(LEVELS)),
    "LAB": (lambda: saved(lab(), "TIFF"), grey(LEVELS)),
    # transparent: over white
    "LA": (lambda: png(np.dstack([LEVELS, ALPHA]), 8, 4), OVER_WHITE),
    "LA of 16 bits": (lambda: png(np.dstack([LEVELS, ALPHA]).astype("u2") * 257, 16, 4), OVER_WHITE),
    "La": (lambda: tiff(np.dstack([PREMULTIPLIED, ALPHA]), photometric=1, t338=1), OVER_WHITE),
    "RGBA": (lambda: png(np.dstack([grey(LEVELS), ALPHA]), 8, 6), OVER_WHITE),
    "RGBa": (lambda: tiff(np.dstack([grey(PREMULTIPLIED), ALPHA]), t338=1), OVER_WHITE),
    "PA": (lambda: tiff(
        np.dstack([NUMBERS, ALPHA]), photometric=3, t338=2, t320=[*DEEP.flatten().tolist(), *[0] * 252] * 3
    ), OVER_WHITE),
    "P with one transparent colour": (lambda: saved(paletted(), "PNG", transparency=2), grey([[0, 64], [255, 255]])),
    "P with alpha": (lambda: saved(paletted(), "PNG", transparency=ALPHA.tobytes()), OVER_WHITE),
    "P, GIF": (lambda: saved(paletted(), "GIF", transparency=2), grey([[0, 64], [255, 255]])),
    "L with a transparent value": (lambda: png(LEVELS, 8, 0, tRNS=b"\0\x80"), grey([[0, 64], [255, 255]])),
    "L of 2 bits with a transparent value": (lambda: png(np.array([[0x10], [0xB0]]), 2, 0, width=2, tRNS=b"\0\2"), grey(
        [[0, 85], [255, 255]]
    )),
    "RGB of 16 bits with a transparent colour": (
        lambda: png(grey(LEVELS).astype("u2") << 8, 16, 2, tRNS=b"\x80\0" * 3), grey([[0, 64], [255, 255]])
    ),
    "RGB with a transparent colour": (lambda: png(grey(LEVELS), 8, 2, tRNS=b"\0\x80" * 3), grey([[0, 64], [255, 255]])),
    "I;16 with a transparent value": (lambda: png(DEEP, 16, 0, tRNS=b"\x80\x80"), grey([[0, 64], [255, 255]])),
    # unsigned 16 bits over their whole range: the upper 8
    "I;16": (lambda: saved(Image.fromarray(DEEP), "PNG"), grey(LEVELS)),
    "I;16, TIFF": (lambda: tiff(DEEP), grey(LEVELS)),
    "I;16B": (lambda: tiff(DEEP, order=">"), grey(LEVELS)),
    "I;16, WhiteIsZero": (lambda: tiff(DEEP, photometric=0), grey(255 - LEVELS)),
    "I;16, JPEG 2000": (lambda: saved(Image.fromarray(DEEP), "JPEG2000", irreversible=False), grey(LEVELS)),
    "I of 16 bits, PGM": (lambda: b"P5 2 2 65535\n" + DEEP.astype(">u2").tobytes(), grey(LEVELS)),
    "I;16 of 12 bits, JPEG 2000": (lambda: jpeg_2000(TWELVE, 12), grey(TWELVE >> 4)),
    "RGB, dark, JPEG 2000": (
        lambda: saved(Image.fromarray(COLOURS // 8), "JPEG2000", irreversible=False), COLOURS // 8
    ),
    "RGB of 16 bits, PNG": (lambda: png(COLOURS.astype("u2") * 257, 16, 2), COLOURS),
    "RGB of 16 bits, TIFF": (lambda: tiff(COLOURS.astype("u2") * 257), COLOURS),
    "RGBA of 16 bits": (lambda: png(np.dstack([grey(LEVELS), ALPHA]).astype("u2") * 257, 16, 6), OVER_WHITE),
    "RGB of 5, 6 and 5 bits, BMP": (lambda: bytes.fromhex(
        "424d4a000000000000004200000028000000020000000200000001001000030000000800000000000000000000000000000000000000"
        "00f80000e00700001f000000" "0000000800002108"
    ), np.array([[[0, 0, 0], [8, 4, 8]], [[0, 0, 0], [8, 0, 0]]])),
    # other ranges: the file's tags
    "I;16, 12 bits by BitsPerSample": (lambda: tiff(PACKED_12, t256=2, t258=12), grey(LEVELS)),
    "I;16, 12 bits by MaxSampleValue": (lambda: tiff(TWELVE, t281=4095), grey(LEVELS)),
    "I;16, WhiteIsZero, MaxSampleValue": (lambda: tiff(TWELVE, photometric=0, t281=4095), grey(255 - LEVELS)),
    "I;16, Min- and MaxSampleValue": (lambda: tiff(TWELVE + 1000, t280=1000, t281=5095), grey(LEVELS)),
    "RGB of 16 bits, PPM": (lambda: b"P6 2 2 65535\n" + (COLOURS.astype(">u2") * 257).tobytes(), COLOURS),
    "RGBA whose alpha is empty, BMP": (lambda: saved(Image.fromarray(np.dstack([COLOURS, 0 * ALPHA])), "BMP"), COLOURS),
    "RGBA whose alpha is empty": (
        lambda: saved(Image.fromarray(np.dstack([COLOURS, 0 * ALPHA])), "PNG"),
        grey([[255, 255]] * 2),
    ),
    "I of 12 bits, plain PGM": (
        lambda: b"P2 2 2 4095\n" + " ".join(map(str, TWELVE.flatten())).encode() + b"\n",
        grey(LEVELS),
    ),
    "I of 12 bits, PGM": (lambda: b"P5 2 2 4095\n" + TWELVE.astype(">u2").tobytes(), grey(LEVELS)),
    "I of 16 bits with a sign": (lambda: tiff(SIGNED, t340=-32768.0, t341=32767.0), grey(LEVELS)),
    "I of 16 bits with a sign, high byte first, zip": (
        lambda: tiff(SIGNED, order=">", t259=8, t340=-32768.0, t341=32767.0), grey(LEVELS)
    ),
    "I of 32 bits, high byte first, zip": (
        lambda: tiff(LEVELS.astype("i4") - 100, order=">", t259=8, t340=-100.0, t341=155.0), grey(LEVELS)
    ),
    "F, high byte first, zip": (
        lambda: tiff((LEVELS / 255).astype("f4"), order=">", t259=8, t340=0.0, t341=1.0), grey(LEVELS)
    ),
    "I of 32 bits without a sign": (lambda: tiff(DEEP.astype("u4") * 65537, t281=2**32 - 1), grey(LEVELS)),
    "L of 8 bits with a sign": (lambda: tiff((LEVELS.astype(int) - 128).astype("i1"), t340=-128.0, t341=127.0), grey(
        LEVELS
    )),
    "F": (lambda: tiff((LEVELS / np.float32(255)).astype("f4"), t340=0.0, t341=1.0), grey(LEVELS)),
    "F, WhiteIsZero": (
        lambda: tiff((LEVELS / 255).astype("f4"), photometric=0, t340=0.0, t341=1.0),
        grey(255 - LEVELS),
    ),
}  # fmt: skip
ROUNDED = ("La", "RGBa", "YCbCr", "LAB")  # Pillow's conversion of these may be off by one


@pytest.mark.parametrize("row", IN_FILES)
def test_every_mode_and_depth_in_a_file_has_a_rule(tmp_path, row):
    data, expected = IN_FILES[row]
    rgb = read(tmp_path, data())
    assert rgb.dtype == np.uint8
    assert np.abs(rgb.astype(int) - expected).max() <= (row in ROUNDED)


IN_MEMORY: dict[str, tuple[Callable[[], Image.Image], np.ndarray]] = {
    "HSV": (lambda: Image.fromarray(grey(LEVELS)).convert("HSV"), grey(LEVELS)),
    "I;16L": (lambda: array("I;16L", DEEP.astype("<u2")), grey(LEVELS)),
    "I;16N": (lambda: array("I;16N", DEEP), grey(LEVELS)),
    "P with an RGBA palette": (
        lambda: paletted("RGBA", np.dstack([grey(LEVELS), ALPHA]).flatten().tolist()),
        OVER_WHITE,
    ),
}


@pytest.mark.parametrize("row", IN_MEMORY)
def test_modes_that_no_file_has(row):
    make, expected = IN_MEMORY[row]
    assert np.array_equal(as_rgb(make(), PixelRules()), expected)


NEED_A_RANGE: dict[str, tuple[Callable[[], bytes], tuple[float, float], str]] = {
    "F in 0-1": (lambda: tiff((LEVELS / 255).astype("f4")), (0, 1), "floats of 32 bits from 0 to 1"),
    "F in 0-4000": (lambda: tiff((LEVELS / 255 * 4000).astype("f4")), (0, 4000), "from 0 to 4000"),
    "F, PFM": (lambda: b"Pf\n2 2\n-1.0\n" + (LEVELS[::-1] / 255).astype("<f4").tobytes(), (0, 1), "from 0 to 1"),
    "12 bits in 16": (lambda: tiff(TWELVE), (0, 4095), r"set dataset.value_range=\[lo,hi\].*=\[0,4095\]"),
    "12 bits in 16, PGM": (lambda: b"P5 2 2 65535\n" + TWELVE.astype(">u2").tobytes(), (0, 4095), "from 0 to 4095"),
    "8 bits in 12, JPEG 2000": (lambda: jpeg_2000(LEVELS, 12), (0, 255), "12 bits go from 0 to 255"),
    "12 bits in 16, PNG": (lambda: png(TWELVE, 16, 0), (0, 4095), "16 bits go from 0 to 4095"),
    "16 bits with a sign": (lambda: tiff(SIGNED), (-32768, 32767), "signed whole numbers of 16 bits from -32768"),
    "12 bits in 16, a tag in letters": (lambda: tiff(TWELVE, t281=[b"9", b"\0"]), (0, 4095), "from 0 to 4095"),
    "32 bits": (lambda: tiff(LEVELS.astype("i4") * 1000), (0, 255000), "signed whole numbers of 32 bits"),
    "32 bits without a sign": (lambda: tiff(DEEP.astype("u4") * 65537), (0, 2**32 - 1), "to 4.29497e[+]09"),
    "8 bits with a sign": (lambda: tiff((LEVELS.astype(int) - 128).astype("i1")), (-128, 127), "from -128 to 127"),
}


@pytest.mark.parametrize("row", NEED_A_RANGE)
def test_without_tags_the_setting_says_the_range_and_nothing_is_guessed(tmp_path, row):
    make, value_range, message = NEED_A_RANGE[row]
    with pytest.raises(ValueError, match=rf"cannot read the image file '.*picture'.*{message}"):
        read(tmp_path, make())
    assert np.array_equal(read(tmp_path, make(), PixelRules(value_range=value_range)), grey(LEVELS))


def test_the_range_is_clipped_and_what_is_no_number_is_black(tmp_path):
    values = np.array([[np.nan, np.inf, -np.inf], [-5, 0.5, 7]], dtype=np.float32)
    rgb = read(tmp_path, tiff(values), PixelRules(value_range=(0, 1)))
    assert rgb[..., 0].tolist() == [[0, 255, 0], [0, 128, 255]]
    with pytest.raises(ValueError, match=r"from -5 to 7 \(3 are not finite\)"):
        read(tmp_path, tiff(values))


def test_the_range_leaves_8_bits_alone_and_gives_way_to_tags(tmp_path):
    rules = PixelRules(value_range=(0, 10))
    assert np.array_equal(read(tmp_path, IN_FILES["L"][0](), rules), grey(LEVELS))
    assert np.array_equal(read(tmp_path, tiff(TWELVE, t281=4095), rules), grey(LEVELS))


def test_the_range_of_floats_leaves_whole_numbers_alone_and_another_one_holds_for_all(tmp_path):
    floats = PixelRules(value_range=(0, 1))
    assert np.array_equal(read(tmp_path, tiff(DEEP), floats), grey(LEVELS))
    for other in (tiff(TWELVE), tiff(SIGNED)):
        with pytest.raises(ValueError, match="the file does not say which"):
            read(tmp_path, other, floats)
    assert np.array_equal(read(tmp_path, tiff((LEVELS > 100).astype("u2")), floats), BLACK_WHITE)  # a mask
    bright = np.minimum(DEEP, 30000)  # a few values above 12 bits do not change the rule
    assert read(tmp_path, tiff(bright), PixelRules(value_range=(0, 4095)))[0, 1, 0] == 255


def test_dark_pictures_of_16_bits_are_read_where_the_range_says_so(tmp_path):
    dark = DEEP // 8
    with pytest.raises(ValueError, match=r"value_range=\[0,65535\]"):
        read(tmp_path, tiff(dark))
    assert np.array_equal(read(tmp_path, tiff(dark), PixelRules(value_range=(0, 65535))), grey(dark >> 8))
    colour = np.repeat(dark[..., None], 3, axis=-1)
    ppm = b"P6 2 2 65535\n" + colour.astype(">u2").tobytes()
    for data in (tiff(colour), png(colour, 16, 2), tiff(colour, t281=8191), ppm):
        with pytest.raises(ValueError, match="14 of their 16 bits"):
            read(tmp_path, data)
    assert np.array_equal(read(tmp_path, png(colour, 16, 2), PixelRules(value_range=(0, 65535))), grey(dark >> 8))
    assert not read(tmp_path, png(np.zeros((2, 2)), 16, 0)).any()  # black is black in any range


def test_the_background_is_a_setting(tmp_path):
    assert np.array_equal(read(tmp_path, IN_FILES["RGBA"][0](), PixelRules(background=(0, 0, 0))), OVER_BLACK)
    coloured = read(tmp_path, IN_FILES["P with alpha"][0](), PixelRules(background=(255, 0, 10)))
    assert coloured[1, 0].tolist() == [255, 0, 10]


def test_a_gif_smaller_than_its_canvas_lies_on_the_background(tmp_path):
    data = bytearray(saved(paletted(), "GIF"))
    at = data.index(b",\0\0\0\0\x02\0\x02\0")  # the picture's place and size
    data[6:10] = bytes([4, 0, 3, 0])  # the canvas: 4 wide, 3 high
    data[at + 1] = 1
    pixels = read(tmp_path, bytes(data), PixelRules(background=(9, 9, 9)))
    assert np.array_equal(pixels, grey([[9, 0, 64, 9], [9, 128, 255, 9], [9, 9, 9, 9]]))


@pytest.mark.parametrize("values", [np.zeros((2, 2), "f8"), np.zeros((2, 2), "f2"), np.zeros((2, 2, 3), "f4")])
def test_kinds_of_tiff_that_pillow_does_not_read_are_named(tmp_path, values):
    with pytest.raises(
        ValueError, match=rf"a TIFF that Pillow \S+ does not read: BitsPerSample .{values.itemsize * 8}"
    ):
        read(tmp_path, tiff(values))


def test_a_cut_tiff_and_one_of_a_single_value_get_a_sentence_of_their_own(tmp_path):
    with pytest.raises(ValueError, match="list of tags is missing or cut off"):
        read(tmp_path, tiff(LEVELS)[:20])
    with pytest.raises(ValueError, match=r"=\[lo,hi\] for all images$"):
        read(tmp_path, tiff(np.full((2, 2), np.nan, "f4")))


def test_channels_that_pillow_would_mix_up_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one after the other without compression"):
        read(tmp_path, separate(COLOURS.astype("u2") * 257))


def test_the_rules_reach_folders_and_the_transform_of_one_image(tmp_path):
    (tmp_path / "float.tif").write_bytes(tiff((LEVELS / 255).astype("f4")))
    images = folder(tmp_path, value_range=[0, 1]).train
    assert np.array_equal(images[0][0].permute(1, 2, 0), grey(LEVELS))
    assert torch.equal(images.open(0).decode(1), images[0][0])
    recipe = Recipe(eval_resize=2, eval_crop=2, normalize="image")
    with Image.open(tmp_path / "float.tif") as image:
        with pytest.raises(ValueError, match="value_range"):
            EvaluationTransform(recipe)(image)
        view = EvaluationTransform(recipe, PixelRules(value_range=(0, 1)))(image)
    assert torch.equal(view, EvaluationTransform(recipe)(images[0][0]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"value_range": [1, 0]},
        {"value_range": [0]},
        {"value_range": "01"},
        {"value_range": [0, float("nan")]},
        {"background": [0, 0]},
        {"background": [0, 0, 256]},
        {"max_pixels": 0},
        {"max_pixels": None},
    ],
    ids=str,
)
def test_wrong_rules_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be"):
        PixelRules(**wrong)
