"""Patches of 19 real photographs that ship inside scikit-image and scikit-learn: real data without a download.

The class of a patch is the photograph it comes from. Photographs are grey, at most 640 pixels long, and cut into tiles
of 64 pixels; tile (row i, column j) belongs to the test part if (i + 2j) % 4 == 0. Every patch of 48 pixels lies inside
one tile, so training and test patches share no pixel. It is shrunk to 32 pixels and standardised, because brightness
and contrast alone would tell many photographs apart. Nearly uniform patches are left out.

The task is small, and it is not a benchmark of natural images: grey-level statistics alone reach a fair accuracy on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from esvit_pl.datasets.interface import ArrayDataset, Splits
from esvit_pl.seeding import derive_seed

# name -> (package, file in it); the class number is the position in this list
PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "brick": ("skimage", "data/brick.png"),
    "camera": ("skimage", "data/camera.png"),
    "cell": ("skimage", "data/cell.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "hubble": ("skimage", "data/hubble_deep_field.jpg"),
    "ihc": ("skimage", "data/ihc.png"),
    "moon": ("skimage", "data/moon.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "page": ("skimage", "data/page.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "text": ("skimage", "data/text.png"),
}

# Photographs that may be published: CC0, public domain, or without known restriction. The other five state no licence
# or an unclear one, so published pictures do not show them.
FREE_TO_SHOW = frozenset(
    ("chelsea", "coffee", "camera", "brick", "grass", "gravel", "cell", "retina")  # CC0
    + ("astronaut", "rocket", "hubble", "coins", "text", "ihc")  # public domain or no known restriction
)

TILE, PATCH, SIZE, LONGEST = 64, 48, 32, 640
DEVIATION = 40  # standard deviation of a finished patch's grey values in 0-255: three of them fit on each side
MIN_DEVIATION = 0.03  # standard deviation of grey values in 0-1; a patch below it shows next to nothing


def photographs(
    *,
    train_patches: int = 250,
    test_patches: int = 60,
    seed: int = 0,
    half: Literal["first", "second"] | None = None,
) -> Splits:
    """Up to `train_patches` and `test_patches` patches of every photograph, uint8 (3 32 32) with equal channels.

    Reads the photographs from the installed packages. `cell` is mostly empty and gives fewer training patches. The same
    seed gives the same patches. `name(i)` is "<photograph>/<train or test>/<number>"; see `FREE_TO_SHOW`.
    `half` takes every other photograph, from the first or from the second on, and leaves its patches as they are.

    Raises:
        ValueError: a package is not installed, a number of patches below 1, or another half.
    """
    if half not in (None, "first", "second"):
        raise ValueError(f"half must be 'first', 'second' or None, got {half!r}")
    for name, number in (("train_patches", train_patches), ("test_patches", test_patches)):
        if number < 1:
            raise ValueError(f"{name} must be 1 or more, got {number}")
    chosen = list(PHOTOGRAPHS)[slice(None) if half is None else slice(half == "second", None, 2)]
    train = _cut(tuple(chosen), "train", train_patches, seed)
    return Splits(train, _cut(tuple(chosen), "test", test_patches, seed), chosen)


def photograph_windows(*, train_windows: int = 250, test_windows: int = 60, seed: int = 0) -> Splits:
    """Pretraining sees windows of the photographs with several things in them; bank and query are patches of one.

    Along its longer side a photograph is cut in two: training windows and patches lie within the first 72 %, those of
    the test in the rest. A window of 96 pixels is shrunk to 64, a patch of 48 to 32, so that both show things equally
    large; both are standardised, and nearly uniform ones are left out, so that some photographs give fewer. Views whose
    correspondence is measured are cut from test windows.

    Args:
        train_windows, test_windows: of each photograph, at most, and as many patches.
        seed: of their places.

    Raises:
        ValueError: a package is not installed, or a number of windows below 1.
    """
    for name, number in (("train_windows", train_windows), ("test_windows", test_windows)):
        if number < 1:
            raise ValueError(f"{name} must be 1 or more, got {number}")
    parts = {
        (part, side): _cut(tuple(PHOTOGRAPHS), part, number, seed, side)
        for part, number in (("train", train_windows), ("test", test_windows))
        for side in (PATCH, 2 * PATCH)
    }
    return Splits(
        parts["train", PATCH],
        parts["test", PATCH],
        list(PHOTOGRAPHS),
        seen=parts["train", 2 * PATCH],
        paired=parts["test", 2 * PATCH],
        notes=("pretraining sees windows of four times a patch's area",),
    )


def _windows(
    picture: Image.Image, part: str, number: int, generator: np.random.Generator, side: int
) -> Iterator[tuple[str, np.ndarray]]:
    """At most `number` windows of this part with the tile that their middle lies in, in six times as many tries."""
    cut = round(0.72 * max(picture.size))
    along, low, high = int(picture.height > picture.width), *((0, cut) if part == "train" else (cut, max(picture.size)))
    found = 0
    for _ in range(6 * number):
        place = [int(generator.integers(length - side + 1)) for length in picture.size]
        place[along] = int(generator.integers(low, high - side + 1))
        x, y = place
        window = picture.crop((x, y, x + side, y + side))
        if np.asarray(window).std() / 255 >= MIN_DEVIATION:
            found += 1
            shrunk = window.resize((side * SIZE // PATCH,) * 2, Image.Resampling.BICUBIC)
            yield f"{(y + side // 2) // TILE}-{(x + side // 2) // TILE}", standardised(np.asarray(shrunk))
        if found == number:
            return


def _cut(photographs: tuple[str, ...], part: str, number: int, seed: int, side: int | None = None) -> ArrayDataset:
    grey, names, labels = _stacked(photographs, part, number, seed, side)
    return ArrayDataset(torch.from_numpy(grey)[:, None].repeat(1, 3, 1, 1), names, labels)


@lru_cache(maxsize=8)  # a second that the commands of one process spend once
def _stacked(
    photographs: tuple[str, ...], part: str, number: int, seed: int, side: int | None
) -> tuple[np.ndarray, list[str], list[int]]:
    """Grey patches, their names and labels; windows of `side` pixels if one is given."""
    patches, names, labels = [], [], []
    for label, name in enumerate(photographs):
        generator = np.random.Generator(np.random.PCG64(derive_seed(seed, name, part)))
        given = (_grey(*PHOTOGRAPHS[name]), part, number, generator)
        for count, (tile, patch) in enumerate(_patches(*given) if side is None else _windows(*given, side)):
            patches.append(patch)
            names.append(f"{name}/{part}/{tile}/{count:03d}")
            labels.append(label)
    return np.stack(patches), names, labels


def _patches(
    picture: Image.Image, part: str, number: int, generator: np.random.Generator
) -> Iterator[tuple[str, np.ndarray]]:
    """At most `number` patches with their tiles, at random places in random tiles of this part, in six times as many
    tries.
    """
    rows, columns = picture.height // TILE, picture.width // TILE
    tiles = [(i, j) for i in range(rows) for j in range(columns) if ((i + 2 * j) % 4 == 0) == (part == "test")]
    found = 0
    for _ in range(6 * number):
        i, j = tiles[generator.integers(len(tiles))]
        y, x = generator.integers(TILE - PATCH + 1, size=2)
        patch = picture.crop((j * TILE + x, i * TILE + y, j * TILE + x + PATCH, i * TILE + y + PATCH))
        if np.asarray(patch).std() / 255 >= MIN_DEVIATION:
            found += 1
            yield f"{i}-{j}", standardised(np.asarray(patch.resize((SIZE, SIZE), Image.Resampling.BICUBIC)))
        if found == number:
            return


def standardised(patch: np.ndarray) -> np.ndarray:
    """The patch with mean 127.5 and standard deviation 40 of 255, clipped; so all patches have the same contrast."""
    levels = patch.astype(np.float32)
    levels = (levels - levels.mean()) / max(float(levels.std()), 1.0)
    clipped: np.ndarray = np.clip(np.round(127.5 + DEVIATION * levels), 0, 255).astype(np.uint8)
    return clipped


def _grey(package: str, file: str) -> Image.Image:
    """The photograph in grey, its longer side at most 640 pixels. Its package is located without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        distribution = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
        raise ValueError(f"the photographs need the package {distribution}: pip install {distribution}")
    with Image.open(Path(spec.submodule_search_locations[0]) / file) as image:
        grey = image.convert("L")
    grey.thumbnail((LONGEST, LONGEST), Image.Resampling.BICUBIC)
    return grey
