"""Which files and folders lie below a folder. What they mean is decided in `layout`."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath

from PIL import features

from esvit_pl.datasets.names import Names
from esvit_pl.safe_text import for_terminal

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
    *((".avif",) if features.check("avif") else ()),
)
"""Endings of the files that are read, in upper or lower case."""
TABLES = (".csv", ".tsv", ".parquet")

# What operating systems, network drives and notebooks put beside pictures. Everything that begins with a dot is left
# out too: .DS_Store, ._x.jpg, .Trash-1000, .ipynb_checkpoints.
SYSTEM = frozenset(
    ("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "lost+found", "__macosx", "__pycache__", "thumbs.db")
    + ("ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler", "system volume information", "icon\r")
)
# A run of this library holds `results.json` and one of these; Hydra marks its folders in its own way.
_BESIDE_RESULTS = frozenset(
    ("config.yaml", "environment.json", "metrics.csv", "checkpoints", "figures", "knn", "linear")
)
_OF_HYDRA = frozenset((".hydra", "multirun.yaml"))
_MARKS = frozenset({"results.json"} | _BESIDE_RESULTS | _OF_HYDRA)


@dataclass
class Listing:
    """Files and folders below `root`; folders are named from there with forward slashes, "" is `root` itself."""

    root: str
    images: dict[str, Sequence[str]]
    """Folder -> names of the image files directly in it. Every folder has an entry, an empty one too."""
    others: dict[str, Counter[str]] = field(default_factory=dict)
    """Folder -> how many files of each other extension lie directly in it."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(path, why) of what is not read: links that lead nowhere, pipes, folders that cannot be opened."""
    runs: list[str] = field(default_factory=list)
    """Folders that hold runs of this library and nothing else; they have no entry in `images`."""
    times: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Folder -> when it was last changed, `times_of` it, before it was read."""
    number: int = 0
    """Images, those of runs too."""


def list_images(root: str | Path) -> Listing:
    """List everything below `root` but system files and runs of this library. Links to folders are followed.

    Raises:
        ValueError: `root` cannot be opened, or it is itself the folder of a run.
    """
    listing = Listing(os.fspath(root), {})
    for _ in read_folders(listing):
        pass
    return listing


def read_folders(listing: Listing) -> Iterator[None]:
    """What `list_images` does to a listing of nothing, a folder at a time."""
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        folder, above = waiting.pop()
        path = os.path.join(listing.root, folder)
        try:
            about = os.stat(path)
            listing.times[folder] = times_of(about)
            if (about.st_dev, about.st_ino) in above:
                listing.skipped.append((folder, "a link to a folder that holds it"))
                continue
            inside = _list_one(listing, folder, path)
        except OSError as error:
            if not folder:
                raise ValueError(f"the folder '{shown(path)}' cannot be opened: {error.strerror or error}") from error
            listing.skipped.append((f"{folder}/", f"cannot be opened: {error.strerror or error}"))
            continue
        waiting += [(name, above | {(about.st_dev, about.st_ino)}) for name in inside]
        yield
    _set_runs_apart(listing)


def times_of(about: os.stat_result) -> tuple[int, int]:
    """When files were last added, removed or renamed in a folder, in nanoseconds; the second one nobody can set."""
    return about.st_mtime_ns, about.st_ctime_ns


def _list_one(listing: Listing, folder: str, path: str) -> list[str]:
    """Enter the files of one folder, and return the folders in it."""
    prefix = f"{folder}/" if folder else ""
    images: list[str] = []
    others: Counter[str] = Counter()
    folders: list[str] = []
    skipped: list[tuple[str, str]] = []
    marks = set()
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if name in _MARKS:
                marks.add(name)
            lower = name.lower()
            if lower[0] == "." or lower in SYSTEM:
                continue
            try:
                if entry.is_dir():
                    folders.append(prefix + name)
                elif not entry.is_file():
                    is_there = os.path.exists(entry.path)
                    why = "a pipe, socket or device" if is_there else "a link that leads nowhere"
                    skipped.append((prefix + name, why))
                elif lower.endswith(EXTENSIONS):
                    images.append(name)
                else:
                    others[os.path.splitext(lower)[1]] += 1
            except OSError as error:  # a link to itself, or into a folder that may not be entered
                skipped.append((prefix + name, f"a link that leads nowhere: {error.strerror}"))
    if marks & _OF_HYDRA or ("results.json" in marks and marks & _BESIDE_RESULTS):
        if not folder:
            raise ValueError(
                f"'{shown(path)}' is the folder of a run (it holds {' and '.join(sorted(marks)[:2])}), and its "
                "pictures are no images to train on; give the folder of your images, and keep runs elsewhere"
            )
        listing.runs.append(folder)
        return []
    listing.images[folder] = Names.of(images)
    listing.number += len(images)
    listing.skipped += skipped
    if others:
        listing.others[folder] = others
    return folders


def _set_runs_apart(listing: Listing) -> None:
    """Widen every run to the largest folder around it that holds nothing to read, such as ``logs``."""
    holding = {above for folder, names in listing.images.items() if names for above in (folder, *parents(folder))}
    tops = set()
    for run in listing.runs:
        around = [run, *parents(run)][:-1]  # without the root
        tops.add(next((inner for inner, outer in pairwise(around) if outer in holding), around[-1]))
    listing.runs = sorted(tops)
    for folder in [name for name in listing.images if tops.intersection((name, *parents(name)))]:
        del listing.images[folder]
        listing.others.pop(folder, None)


def parents(folder: str) -> Iterator[str]:
    """The folders around `folder`, the innermost first; the last one is "".

    >>> list(parents("a/b/c"))
    ['a/b', 'a', '']
    """
    while folder:
        folder = folder.rpartition("/")[0]
        yield folder


def shown(name: str | os.PathLike[str]) -> str:
    """A name that is safe to print: line breaks, control characters and bytes that are no UTF-8 are written as escapes.

    >>> shown("a\\nb.jpg")
    'a\\\\nb.jpg'
    """
    return for_terminal(os.fspath(name))


def same_name(name: str) -> str:
    """The name in the one Unicode form in which names are compared; macOS stores accents in another one."""
    return unicodedata.normalize("NFC", name)


def ending(path: str) -> str:
    """The extension of a file in lower case, ".jpg"; "" without one."""
    return PurePosixPath(path).suffix.lower()
