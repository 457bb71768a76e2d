"""Images that cannot be read: an error, or another image takes their place and they are counted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from esvit_pl.datasets.pixels import PixelRules, UnreadableMetadata
from esvit_pl.seeding import numpy_generator

METADATA, BROKEN = 1, 2
ADVICE = "esvit-data check lists all such images; dataset.on_bad_image=skip goes on without them"
T = TypeVar("T")


class SkippedImage(ValueError):
    """An image that cannot be read, in a data set that lets another one take its place.

    A data set of your own may raise it from `__getitem__` and `open`.
    """


@dataclass(frozen=True)
class Reading(PixelRules):
    """How image files are read: how they become RGB, and what happens to those that do not.

    >>> Reading(on_bad_image="skip").allowed(5000)
    50

    Args:
        on_bad_image: "error" ends the run at the first image that cannot be read; "skip" draws another image in its
            place.
        bad_image_budget: with "skip", the share of a split's images that may be unreadable before the run ends; one
            image always may.
    """

    on_bad_image: str = "error"
    bad_image_budget: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on_bad_image not in ("error", "skip"):
            raise ValueError(f"on_bad_image must be 'error' or 'skip', got {self.on_bad_image!r}")
        if isinstance(self.bad_image_budget, bool) or not isinstance(self.bad_image_budget, int | float):
            raise ValueError(f"bad_image_budget must be a share of the images in 0-1, got {self.bad_image_budget!r}")
        if not 0 < self.bad_image_budget <= 1:
            raise ValueError(f"bad_image_budget must lie above 0 and at most be 1, got {self.bad_image_budget}")

    def allowed(self, images: int) -> int:
        """How many of so many images may be unreadable."""
        return 0 if self.on_bad_image == "error" else max(int(self.bad_image_budget * images), 1)


class Problems:
    """Which images of a data set could not be read, and whose metadata could not.

    Loading processes write into one block of shared memory, a byte for each image, so that nothing is sent back.

    >>> problems = Problems(1000, Reading(on_bad_image="skip"))
    >>> try:
    ...     with problems.watch(7):
    ...         raise ValueError("cannot read 7.jpg")
    ... except SkippedImage:
    ...     problems.broken
    [7]
    """

    def __init__(self, images: int, reading: Reading) -> None:
        self.reading = reading
        self._found = torch.zeros(images, dtype=torch.uint8).share_memory_()

    @property
    def broken(self) -> list[int]:
        """The images that could not be read so far."""
        return self._all(BROKEN)

    @property
    def metadata(self) -> list[int]:
        """The images whose pixels could be read, and whose metadata could not."""
        return self._all(METADATA)

    def told(self, index: int) -> Callable[[str], None]:
        """What `decode` calls about the metadata of an image: the first one is a warning, the others are counted."""
        return partial(self._note_metadata, index)

    @contextmanager
    def watch(self, index: int) -> Iterator[None]:
        """Note that an image cannot be read, if a `ValueError` says so, and turn that into what follows from it.

        Raises:
            SkippedImage: another image may take its place.
            ValueError: the run ends.
        """
        try:
            yield
        except ValueError as error:
            self._found[index] = BROKEN
            broken, allowed = len(self.broken), self.reading.allowed(len(self._found))
            if allowed >= broken:
                raise SkippedImage(str(error)) from error
            if allowed:
                raise ValueError(
                    f"{broken} of {len(self._found):,} images cannot be read, and "
                    f"dataset.bad_image_budget={self.reading.bad_image_budget:g} allows {allowed}; "
                    f"esvit-data check lists them all; the last one: {error}"
                ) from error
            raise ValueError(f"{error} ({ADVICE})") from error

    def _note_metadata(self, index: int, sentence: str) -> None:
        is_first = not self.metadata
        self._found[index] = METADATA
        if is_first:
            warnings.warn(f"{sentence}; more such images are only counted", UnreadableMetadata, stacklevel=2)

    def _all(self, kind: int) -> list[int]:
        found: Tensor = (self._found == kind).nonzero()[:, 0]
        return [int(index) for index in found]


def readable(make: Callable[[int], T], images: int, index: int, *place: int | str) -> T:
    """``make(index)``; of another image where the data set skips this one.

    Which one is a pure function of `place` and `index`: the same in every process and in a resumed run.

    Args:
        make: raises `SkippedImage` where another image may be taken.
        images: in the data set.
        place: what else the draw depends on, such as seed and epoch.

    Raises:
        ValueError: each of the images was tried.
    """
    others, shown, tried = None, index, set()
    while True:
        try:
            return make(shown)
        except SkippedImage as error:
            tried.add(shown)
            if len(tried) == images:
                raise ValueError(
                    f"none of the {images:,} images here (a split, or its bank or query) can be read; esvit-data check "
                    f"lists them; the last one: {error}"
                ) from error
        others = others or numpy_generator(*place, index, "in place of a bad image")
        shown = int(others.integers(images))
