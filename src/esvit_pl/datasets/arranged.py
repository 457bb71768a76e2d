"""The images of a folder in their order, with their classes: what a `Layout` makes of a `Listing`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from esvit_pl.datasets.interface import places_of
from esvit_pl.datasets.layout import Part, read_layout
from esvit_pl.datasets.listing import Listing
from esvit_pl.datasets.names import Names


class Images(NamedTuple):
    """Those of one split, in the order of their names."""

    root: str
    """Folder below the data set's root, from which the names count; "" is the root itself."""
    names: Names
    labels: np.ndarray | None
    """int64, the number of each image's class."""
    places: np.ndarray | None = None
    """float64, `places_of` the names, where no val is given."""


class Arranged(NamedTuple):
    """What the folder holds."""

    train: Images
    val: Images | None
    classes: list[str] | None
    notes: tuple[str, ...]
    """The lines that a run prints."""


def arranged(listing: Listing, *, layout: str, labels: str) -> Arranged:
    """The images of both splits.

    Raises:
        ValueError: as `read_layout`.
    """
    found = read_layout(listing, layout=layout, labels=labels)
    val = None if found.val is None else _images(listing, found.val)
    return Arranged(_images(listing, found.train), val, found.classes, found.notes())


def with_places(found: Arranged) -> Arranged:
    """The same, with what decides over bank and query if there is no val."""
    if found.val is not None:
        return found
    return found._replace(train=found.train._replace(places=places_of(found.train.names)))


def _images(listing: Listing, part: Part) -> Images:
    blocks = list(_blocks(listing, part))
    names = Names.joined([names for names, _ in blocks])
    if None in part.folders.values():
        return Images(part.root, names, None)
    return Images(part.root, names, np.concatenate([np.empty(0, np.int64), *(labels for _, labels in blocks)]))


def _blocks(listing: Listing, part: Part) -> Iterator[tuple[Names, np.ndarray]]:
    """Names and class numbers of a folder and the folders in it, block after block in the order of names.

    Only the names of one block are in memory as Python's own strings at a time.
    """
    start = len(part.root) + 1 if part.root else 0
    folders = sorted((os.fsencode(f"{path[start:]}/" if len(path) > start else ""), path) for path in part.folders)
    block: list[tuple[bytes, str]] = []
    for prefix, path in folders:
        if block and not prefix.startswith(block[0][0]):
            yield _block(listing, part, block)
            block = []
        block.append((prefix, path))
    if block:
        yield _block(listing, part, block)


def _block(listing: Listing, part: Part, folders: list[tuple[bytes, str]]) -> tuple[Names, np.ndarray]:
    if len(folders) == 1:
        ((prefix, path),) = folders
        names = sorted(prefix + os.fsencode(name) for name in listing.images[path])
        return Names.of(names), np.full(len(names), _number(part, path))
    pairs = sorted(
        (prefix + os.fsencode(name), _number(part, path)) for prefix, path in folders for name in listing.images[path]
    )
    return Names.of(name for name, _ in pairs), np.array([number for _, number in pairs], dtype=np.int64)


def _number(part: Part, path: str) -> int:
    number = part.folders[path]
    return -1 if number is None else number
