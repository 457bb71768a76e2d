"""Pairs of images whose keypoints belong together: SPair-71k (Min et al., arXiv 1908.10543)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from esvit_pl.datasets.bad_images import Reading
from esvit_pl.datasets.folder import FolderDataset, existing
from esvit_pl.datasets.interface import Splits
from esvit_pl.datasets.listing import shown

Points = tuple[tuple[float, float], ...]


class Annotated(NamedTuple):
    """One image of a pair."""

    image: int
    """Its number in the data set."""
    size: tuple[int, int]
    """(height, width) in pixels, as annotated."""
    points: Points
    """x and y of the keypoints, counted in pixels from 0, in the same order in both images."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom of the object."""


class KeypointPair(NamedTuple):
    """Two images of things of one category."""

    name: str
    category: str
    source: Annotated
    target: Annotated


@dataclass(frozen=True)
class KeypointSplits(Splits):
    """The images of some pairs, and the pairs.

    >>> image = Annotated(0, size=(30, 40), points=((10.0, 20.0),), box=(0.0, 0.0, 39.0, 29.0))
    >>> images = FolderDataset("SPair-71k", ["JPEGImages/cat/1.jpg", "JPEGImages/cat/2.jpg"])
    >>> KeypointSplits(images, pairs=(KeypointPair("1-2:cat", "cat", image, image._replace(image=1)),)).categories
    ['cat']
    """

    pairs: tuple[KeypointPair, ...] = ()

    @property
    def categories(self) -> list[str]:
        return sorted({pair.category for pair in self.pairs})


def spair71k(root: str | Path, *, split: str = "test", layout: str = "large", **reading: Any) -> KeypointSplits:
    """SPair-71k: 70,958 pairs of 1,800 images of 18 categories; 12,234 pairs in its test split.

    Read are ``Layout/<layout>/<split>.txt``, ``PairAnnotation/<split>/*.json`` and ``JPEGImages/<category>/*.jpg``.

    Args:
        root: ``SPair-71k``, or the folder that holds it.
        split: "trn", "val" or "test".
        layout: "large" for all pairs, "small" for the authors' tenth of them.
        reading: of `Reading`: value_range, background, max_pixels, on_bad_image, bad_image_budget.

    Raises:
        ValueError: it is not there, or not complete; an annotation is broken.
    """
    home = existing(root)
    home = home / "SPair-71k" if (home / "SPair-71k").is_dir() else home
    listed = home / "Layout" / layout / f"{split}.txt"
    if not listed.is_file():
        raise ValueError(
            f"'{shown(listed)}' does not exist; unpack SPair-71k.tar.gz (cvlab.postech.ac.kr/research/SPair-71k), and "
            "give its folder SPair-71k. split must be trn, val or test, and layout large or small"
        )
    names = listed.read_text(encoding="utf-8").split()
    described = {name: _annotation(home / "PairAnnotation" / split / f"{name}.json") for name in names}
    files = {
        f"JPEGImages/{about['category']}/{about[f'{side}_imname']}"
        for about in described.values()
        for side in ("src", "trg")
    }
    numbers = {name: number for number, name in enumerate(sorted(files))}
    missing = [name for name in numbers if not (home / name).is_file()]
    if missing or not numbers:
        first = f", first {missing[0]}" if missing else ""
        raise ValueError(f"{len(missing)} of {len(numbers)} images of {split} are missing in '{shown(home)}'{first}")
    pairs = tuple(_pair(name, about, numbers) for name, about in described.items())
    images = FolderDataset(home, list(numbers), reading=Reading(**reading))
    return KeypointSplits(images, notes=(f"pairs: {len(pairs):,} of split {split}",), pairs=pairs)


def _annotation(path: Path) -> Mapping[str, Any]:
    try:
        about: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        needed = ("imname", "imsize", "bndbox", "kps")
        lacking = [f"{side}_{key}" for side in ("src", "trg") for key in needed if f"{side}_{key}" not in about]
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the annotation '{shown(path)}': {error}") from error
    if lacking or "category" not in about or len(about["src_kps"]) != len(about["trg_kps"]) or not about["src_kps"]:
        raise ValueError(
            f"the annotation '{shown(path)}' must have a category, and {', '.join(needed)} with src_ and trg_ in "
            "front, with as many keypoints in both images, one or more"
        )
    return about


def _pair(name: str, about: Mapping[str, Any], numbers: Mapping[str, int]) -> KeypointPair:
    def side(key: str) -> Annotated:
        width, height = about[f"{key}_imsize"][:2]
        points = tuple((float(x), float(y)) for x, y in about[f"{key}_kps"])
        left, top, right, bottom = map(float, about[f"{key}_bndbox"])
        image = numbers[f"JPEGImages/{about['category']}/{about[f'{key}_imname']}"]
        return Annotated(image, (height, width), points, (left, top, right, bottom))

    return KeypointPair(name, about["category"], side("src"), side("trg"))
