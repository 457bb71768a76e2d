from __future__ import annotations

import io
import math
import os
import socket
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps

from esvit_pl.datasets import FolderDataset, PixelRules, UnreadableMetadata, decode, folder


def waves(height: int, width: int) -> Image.Image:
    """A smooth picture, other in every corner and channel."""
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    waves = [np.sin(3 * x + 2 * y), np.cos(4 * x * y + 1), np.sin(2 * y - 3 * x)]
    return Image.fromarray((127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8))


def block_means(image: torch.Tensor, reduction: int) -> torch.Tensor:
    means = torch.nn.functional.avg_pool2d(image[None].float(), reduction, ceil_mode=True, count_include_pad=False)
    return means[0]


FORMATS = {"jpg": "JPEG", "PNG": "PNG", "WebP": "WEBP", "gif": "GIF", "bmp": "BMP", "TIFF": "TIFF", "avif": "AVIF"}
FORMATS |= {"jp2": "JPEG2000", "ppm": "PPM", "jfif": "JPEG", "jpeg": "PNG", "png": "JPEG"}  # the content counts


@pytest.mark.parametrize("extension", FORMATS)
def test_formats(tmp_path, extension):
    picture = Image.fromarray(np.full((6, 5, 3), 200, dtype=np.uint8))
    picture.save(tmp_path / f"x.{extension}", FORMATS[extension])
    image = decode(str(tmp_path / f"x.{extension}"))
    assert image.dtype == torch.uint8
    assert image.shape == (3, 6, 5)
    assert (image.int() - 200).abs().max() <= 2


def test_exif_orientation_is_respected(tmp_path):
    stored = Image.new("RGB", (40, 20))
    stored.paste((255, 255, 255), (0, 0, 20, 20))  # white on the left as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    stored.save(tmp_path / "x.jpg", exif=exif)
    image = decode(str(tmp_path / "x.jpg"))
    assert image.shape == (3, 40, 20)
    assert image[:, :15].min() > 200  # left becomes top
    assert image[:, 25:].max() < 50


def test_grey_palette_transparent_cmyk_and_16_bit_become_rgb(tmp_path):
    grey = Image.fromarray(np.array([[0, 128], [255, 7]], dtype=np.uint8))
    grey.save(tmp_path / "l.png")
    expected = torch.tensor([[0, 128], [255, 7]], dtype=torch.uint8).expand(3, 2, 2)
    assert torch.equal(decode(str(tmp_path / "l.png")), expected)
    Image.fromarray(np.array([[0, 128], [255, 7]], dtype=np.uint16) * 256).save(tmp_path / "i16.png")
    assert torch.equal(decode(str(tmp_path / "i16.png")), expected)
    grey.convert("RGB").quantize(4).save(tmp_path / "p.png", transparency=b"\xff\x00\xff\xff")
    over_white = torch.tensor([[0, 255], [255, 7]], dtype=torch.uint8).expand(3, 2, 2)
    assert torch.equal(decode(str(tmp_path / "p.png")), over_white)
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "c.jpg")
    assert decode(str(tmp_path / "c.jpg")).min() == 255


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_is_decoded_at_a_smaller_scale(tmp_path, mode):
    waves(100, 203).convert(mode).save(tmp_path / "x.jpg", quality=95)
    data = FolderDataset(tmp_path, ["x.jpg"], [7])
    whole, _ = data[0]
    picture = data.open(0)
    assert (picture.size, picture.label) == ((100, 203), 7)
    assert torch.equal(picture.decode(1), whole)
    for reduction in (2, 4, 8):
        small = picture.decode(reduction)
        assert small.dtype == torch.uint8
        assert small.shape[1:] == (math.ceil(100 / reduction), math.ceil(203 / reduction))
        difference = (small - block_means(whole, reduction)).abs()
        assert difference.mean() < 1
        assert difference.max() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_smaller_jpeg_is_turned_as_the_whole_one_is(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    waves(100, 203).save(tmp_path / "as_stored.jpg")
    waves(100, 203).save(tmp_path / "turned.jpg", exif=exif)
    stored, turned = (FolderDataset(tmp_path, [f"{name}.jpg"]).open(0) for name in ("as_stored", "turned"))
    assert turned.size == ((203, 100) if orientation > 4 else (100, 203))
    for reduction in (1, 2, 4, 8):
        expected = Image.fromarray(stored.decode(reduction).permute(1, 2, 0).numpy())
        expected.getexif()[0x0112] = orientation
        ImageOps.exif_transpose(expected, in_place=True)
        assert np.array_equal(turned.decode(reduction).permute(1, 2, 0), expected)


@pytest.mark.parametrize("extension", ["png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_is_turned_once(tmp_path, extension, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    waves(4, 7).save(tmp_path / f"x.{extension}", exif=exif, **({"lossless": True} if extension == "webp" else {}))
    expected = waves(4, 7)
    expected.getexif()[0x0112] = orientation
    ImageOps.exif_transpose(expected, in_place=True)
    assert np.array_equal(decode(str(tmp_path / f"x.{extension}")).permute(1, 2, 0), expected)
    assert folder(tmp_path).train.size(0) == (expected.height, expected.width)


@pytest.mark.parametrize("extension", ["png", "webp", "gif", "bmp", "tif"])
def test_other_formats_stay_whole(tmp_path, extension):
    waves(40, 50).save(tmp_path / f"x.{extension}")
    data = folder(tmp_path).train
    picture = data.open(0)
    assert (picture.size, picture.label) == ((40, 50), None)
    assert torch.equal(picture.decode(8), data[0][0])


def test_the_first_picture_of_a_phones_file_is_decoded_at_a_smaller_scale(tmp_path):
    waves(40, 50).save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (50, 40))])
    picture = folder(tmp_path).train.open(0)
    assert torch.equal(picture.decode(1), decode(str(tmp_path / "x.jpg")))
    assert (picture.decode(2) - block_means(picture.decode(1), 2)).abs().max() < 8


def test_a_picture_of_a_few_pixels_has_no_scale_below_one(tmp_path):
    Image.new("RGB", (3, 20), (200, 100, 50)).save(tmp_path / "x.jpg")
    assert folder(tmp_path).train.open(0).decode(8).shape == (3, 10, 2)  # 3 pixels allow a half, no eighth


def test_a_file_that_breaks_on_opening_or_on_decoding_is_named(tmp_path):
    waves(400, 500).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-300])
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    data = FolderDataset(tmp_path, ["bad.jpg", "cut.jpg", "missing.jpg"])
    for index, name in ((0, "bad"), (2, "missing")):
        with pytest.raises(ValueError, match=rf"cannot read the image file '.*{name}\.jpg': \w+Error"):
            data.open(index)
    picture = data.open(1)
    with pytest.raises(ValueError, match=r"cannot read the image file '.*cut\.jpg': OSError"):
        picture.decode(2)


def test_a_broken_file_is_named(tmp_path):
    for name in ("good.png", "bad.png", "cut.png"):
        Image.new("RGB", (4, 3), (1, 2, 3)).save(tmp_path / name)
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:50])
    data = folder(tmp_path).train
    for index, name in enumerate(("bad", "cut")):
        with pytest.raises(ValueError, match=rf"cannot read the image file '.*{name}\.png': \w+Error"):
            data[index]


# -- metadata


def chunk(name: bytes, body: bytes, checksum: int | None = None) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum or zlib.crc32(name + body))


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_parts(kind: str, *parts: bytes, behind: bytes = b"") -> bytes:
    """A picture of 40 x 20 pixels with further chunks or segments of metadata."""
    file = io.BytesIO()
    waves(20, 40).save(file, kind)
    data = file.getvalue()
    if kind == "JPEG":
        return data[:2] + b"".join(parts) + data[2:]
    start, end = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    return data[:start] + b"".join(parts) + data[start:end] + behind + data[end:]


def saved(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    waves(20, 40).save(file, kind, **options)
    return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def tiff_with_a_cut_description() -> bytes:
    data = saved("TIFF", tiffinfo={270: "x" * 50})
    entry = data.index(struct.pack("<HH", 270, 2))
    return data[: entry + 4] + struct.pack("<I", 10**6) + data[entry + 8 :]


EXIF_6 = turned()
NO_HEAD = b"Exif\0\0" + b"\0\x08\0\x02\x01\x12\0\x03"
HUGE = zlib.compress(b"a" * 2**21)
BROKEN_METADATA = {
    "EXIF without head, PNG": lambda: with_parts("PNG", chunk(b"eXIf", NO_HEAD[6:])),
    "EXIF without head, JPEG": lambda: with_parts("JPEG", segment(0xE1, NO_HEAD)),
    "EXIF without head, WebP": lambda: saved("WEBP", exif=NO_HEAD),
    "EXIF without head, AVIF": lambda: saved("AVIF", exif=EXIF_6[:6] + b"II*\0\x08\0\0\0" + bytes(6)).replace(
        b"II*\0\x08\0\0\0", b"ZZ*\0\x08\0\0\0"
    ),
    "EXIF cut": lambda: with_parts("JPEG", segment(0xE1, EXIF_6[:20])),
    "EXIF in a text that is no hex": lambda: with_parts(
        "PNG", chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nzz!!\n")
    ),
    "chunk with a wrong checksum": lambda: with_parts("PNG", chunk(b"tEXt", b"k\0v", 1)),
    "text of a strange kind": lambda: with_parts("PNG", chunk(b"zTXt", b"k\0\x05xx")),
    "text of a strange kind behind the pixels": lambda: with_parts("PNG", behind=chunk(b"zTXt", b"k\0\x05xx")),
    "text that unpacks to megabytes": lambda: with_parts("PNG", chunk(b"zTXt", b"k\0\0" + HUGE)),
    "profile of a strange kind": lambda: with_parts("PNG", chunk(b"iCCP", b"n\0\x07xx")),
    "animation without frames": lambda: with_parts("PNG", chunk(b"acTL", b"\0\0\0\2\0\0\0\0"), chunk(b"fcTL", b"\0")),
    "profile of one byte": lambda: with_parts("JPEG", segment(0xE2, b"ICC_PROFILE\0")),
    "Photoshop's block cut": lambda: with_parts("JPEG", segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04")),
    "JFIF cut": lambda: with_parts("JPEG", segment(0xE0, b"JFIF\0")),
    "list of a phone's pictures cut": lambda: with_parts("JPEG", segment(0xE2, b"MPF\0xx")),
    "description longer than the file": tiff_with_a_cut_description,
}  # fmt: skip


@pytest.mark.parametrize("row", BROKEN_METADATA)
def test_metadata_that_cannot_be_read_ends_nothing(tmp_path, row):
    path = tmp_path / "x"
    path.write_bytes(BROKEN_METADATA[row]())
    told: list[str] = []
    image = decode(str(path), told=told.append)
    assert image.shape == (3, 20, 40)
    assert (image.float() - torch.from_numpy(np.array(waves(20, 40))).permute(2, 0, 1)).abs().mean() < 8
    assert len(told) == 1
    assert told[0].startswith(f"the metadata of '{path}' cannot be read (")


def test_an_orientation_survives_other_broken_metadata(tmp_path):
    for name, data in {
        "x.png": with_parts("PNG", chunk(b"eXIf", EXIF_6[6:]), chunk(b"zTXt", b"k\0\x05xx")),
        "x.jpg": with_parts("JPEG", segment(0xE1, EXIF_6), segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04")),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert decode(str(tmp_path / name), told=lambda sentence: None).shape == (3, 40, 20)


@pytest.mark.parametrize("value", [b"\0\0\0\0", b"\0\x63\0\0", b"\xff\xff\0\0"])
def test_an_orientation_out_of_range_is_none(tmp_path, value):
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1" + struct.pack(">HHI", 0x112, 3, 1) + value + bytes(4)
    (tmp_path / "x.jpg").write_bytes(with_parts("JPEG", segment(0xE1, exif)))
    assert decode(str(tmp_path / "x.jpg")).shape == (3, 20, 40)


def test_unreadable_metadata_is_a_warning_of_its_own_kind(tmp_path):
    (tmp_path / "x.png").write_bytes(BROKEN_METADATA["EXIF without head, PNG"]())
    with pytest.warns(UnreadableMetadata, match=r"x.png' cannot be read \(SyntaxError: not a TIFF file"):
        decode(str(tmp_path / "x.png"))


# -- what is not opened


def test_a_postscript_file_called_jpg_starts_nothing(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.format == "EPS"  # Pillow would read it
    with pytest.raises(
        ValueError, match=r"x.jpg': UnidentifiedImageError: its format is not one of JPEG, .*begins with b'%!PS-Ado'"
    ):
        decode(str(tmp_path / "x.jpg"))


def test_pipes_sockets_devices_and_links_to_themselves_are_named_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.jpg"))
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name, message in (
        ("pipe", "it is a pipe, not a file"),
        ("socket", "it is a socket, not a file"),
        ("zero", "it is a device, not a file"),
        ("folder", "it is a folder, not a file"),
        ("empty", "the file is empty"),
        ("loop", "OSError: .*Too many levels of symbolic links"),
    ):
        with pytest.raises(ValueError, match=f"{name}.jpg': {message}"):
            decode(str(tmp_path / f"{name}.jpg"))


def test_more_pixels_than_allowed_are_refused_before_they_are_decoded(tmp_path):
    Image.new("1", (4000, 3000)).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:60])  # only the header is there
    with pytest.raises(
        ValueError, match=r"x.png': it has 4,000 x 3,000 = 12,000,000 pixels, and dataset.max_pixels=1000"
    ):
        decode(str(tmp_path / "x.png"), PixelRules(max_pixels=1000))
    with pytest.raises(ValueError, match="max_pixels=1000"):
        folder(tmp_path, max_pixels=1000).train.open(0)


def test_pillows_own_settings_do_not_matter_and_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)  # Pillow would refuse everything
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # and read half of a file
    waves(40, 50).save(tmp_path / "x.png")
    waves(400, 500).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-3000])
    assert decode(str(tmp_path / "x.png")).shape == (3, 40, 50)
    with pytest.raises(ValueError, match="truncated"):
        decode(str(tmp_path / "cut.jpg"))
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == (1, True)


def test_importing_the_data_sets_leaves_pillow_alone():
    code = (
        "from PIL import Image, ImageFile; before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES; "
        "import esvit_pl.datasets.decode; assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("size", [(1, 1), (1, 30000), (30000, 1)])
def test_pictures_of_one_pixel_and_very_long_ones(tmp_path, size):
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "x.png")
    assert decode(str(tmp_path / "x.png")).shape == (3, size[1], size[0])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_the_first_of_several_pictures_counts(tmp_path, kind):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ((255, 255, 255), (0, 0, 0)))
    first.save(tmp_path / "x", kind, save_all=True, append_images=[second])
    assert decode(str(tmp_path / "x")).float().mean() > 250
