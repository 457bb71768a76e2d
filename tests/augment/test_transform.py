from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from esvit_pl.augment import EvaluationTransform, Recipe, evaluation_view
from esvit_pl.datasets import decode

RECIPE = Recipe(eval_resize=24, eval_crop=16)


@pytest.fixture(scope="module")
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_it_is_the_evaluation_view_of_the_file(picture, tmp_path):
    """Also of a file whose EXIF says that it lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in (("plain.png", {}), ("turned.jpg", {"exif": exif})):
        path = tmp_path / name
        picture.save(path, **options)
        with Image.open(path) as image:
            view = EvaluationTransform(RECIPE)(image)
        assert torch.equal(view, evaluation_view(RECIPE, decode(str(path))))
        assert view.shape == (3, 16, 16)


def test_tensors_and_images_of_every_mode(picture):
    transform = EvaluationTransform(RECIPE)
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert torch.equal(transform(tensor), transform(picture))
    grey = picture.convert("L")
    assert torch.equal(transform(grey), transform(grey.convert("RGB")))
    for mode in ("1", "P", "RGBA", "CMYK", "LA"):
        assert transform(picture.convert(mode)).shape == (3, 16, 16)


def test_normalisation_is_the_recipes(picture):
    view = EvaluationTransform(Recipe(eval_resize=30, eval_crop=30, normalize="view"))(picture)
    assert view.mean() == pytest.approx(0, abs=1e-5)
    assert view.std(correction=0) == pytest.approx(1, abs=1e-5)


def test_workers_get_a_copy(picture):
    transform = EvaluationTransform(RECIPE)
    assert pickle.loads(pickle.dumps(transform)) == transform
    assert transform.recipe == RECIPE


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.zeros(3, 8, 8), r"takes a uint8 tensor \(3 h w\), got torch.float32 \(3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"got torch.uint8 \(2, 3, 8, 8\); give one image"),
        ("dog.jpg", "takes a PIL image or a uint8 tensor .*, got str"),
    ],
)
def test_what_is_refused(image, said):
    with pytest.raises(ValueError, match=said):
        EvaluationTransform(RECIPE)(image)
