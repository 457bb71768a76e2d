from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from esvit_pl.datasets import FolderDataset, decode, folder


def waves(height: int, width: int) -> Image.Image:
    """A smooth picture, other in every corner and channel."""
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    waves = [np.sin(3 * x + 2 * y), np.cos(4 * x * y + 1), np.sin(2 * y - 3 * x)]
    return Image.fromarray((127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8))


def block_means(image: torch.Tensor, reduction: int) -> torch.Tensor:
    means = torch.nn.functional.avg_pool2d(image[None].float(), reduction, ceil_mode=True, count_include_pad=False)
    return means[0]


@pytest.mark.parametrize("extension", ["jpg", "JPEG", "png", "WebP", "gif", "bmp", "tif", "TIFF"])
def test_formats(tmp_path, extension):
    picture = Image.fromarray(np.full((6, 5, 3), 200, dtype=np.uint8))
    picture.save(tmp_path / f"x.{extension}")
    image, _ = folder(tmp_path).train[0]
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
