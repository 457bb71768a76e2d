"""A large folder is listed once: the list is kept in a file, which all ranks and loading processes map into memory.

The file is in safetensors' format, and lies in the user's cache folder (XDG_CACHE_HOME, else ~/.cache), never beside
the images, where a stranger's file could lie. It is used only if every folder of images has the times of change that it
had when it was listed, and is never written again under its name, because processes on other machines may have mapped
it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from esvit_pl.datasets.arranged import Arranged, Images, arranged, with_places
from esvit_pl.datasets.listing import EXTENSIONS, Listing, read_folders, shown, times_of
from esvit_pl.datasets.names import Names
from esvit_pl.printing import say_once
from esvit_pl.whole import replacing

try:
    import fcntl
except ImportError:  # Windows: no list is kept there
    fcntl = None  # type: ignore[assignment]

CHOICES = ("auto", "rebuild", "none")
MANY = 50_000
"""From so many images on a list is kept: fewer are listed in less than a second."""
FORMAT = 1
"""The version of the file. Raise it when the file changes, and when `listing`, `layout` or `arranged` read a folder
in another way."""
SETTLED = 2 * 10**9
"""Nanoseconds for which a folder must have been left alone when it was read: clocks of file systems are coarse."""
UNUSED = 60 * 86_400
"""Seconds after which an index that nobody opened is removed."""
STATES = 3
THREADS = 16
CHUNK = 2**24
OUT_OF_THE_FOLDER = (b"\0/", b"\0../", b"/../", b"/..\0", b"\0..\0", b"//")
"""What no name may contain when a null byte stands before and after each name."""
LONGEST_WAIT = 1800.0


def images_of(root: str | Path, *, layout: str, labels: str, index: str) -> tuple[Arranged, Path | None]:
    """The images of a folder, and the index file from which they were read, if any.

    Raises:
        ValueError: as `list_images` and `read_layout`, or `index` is no choice.
    """
    if index not in CHOICES:
        raise ValueError(f"index must be 'auto', 'rebuild' or 'none', got {index!r}")
    kept = None if index == "none" or fcntl is None else Kept(root, layout, labels)
    # The other processes of a training that rebuilds the index are content with what the first one has built.
    anew = index == "rebuild" and all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "SLURM_LOCALID"))
    found = kept.newest() if kept is not None and not anew else None
    if found is not None:
        return found
    listing, start, waited = Listing(os.fspath(root), {}), time.time_ns(), False
    with one_at_a_time() as wait:
        for _ in read_folders(listing):
            if kept is not None and not waited and (anew or listing.number >= MANY):
                waited, others = True, wait(kept)
                if (others or not anew) and (found := kept.newest()) is not None:
                    return found
        whole = arranged(listing, layout=layout, labels=labels)
        if kept is not None and waited:
            path = kept.keep(with_places(whole), listing, start)
            if path is not None:
                return read(path), path
    return whole, None


class Kept:
    """The index files of a folder under some settings; several, if several machines see different folders there."""

    def __init__(self, root: str | Path, layout: str, labels: str) -> None:
        self.root = os.fspath(root)
        rules = json.dumps([FORMAT, os.path.realpath(self.root), layout, labels, EXTENSIONS])
        self.name = blake2b(rules.encode(), digest_size=12).hexdigest()
        self.folder = cache_folder()

    def newest(self) -> tuple[Arranged, Path] | None:
        """The images, from an index that is whole and of the folder as it is now; None if there is none."""
        found = []
        with suppress(OSError):
            found = sorted(self.folder.glob(f"{self.name}-*.index"), key=lambda path: -path.stat().st_mtime)
        for path in found:
            with suppress(OSError, ValueError, KeyError, TypeError, SafetensorError):
                if path.stat().st_uid == os.geteuid() and self._is_of_now(path):
                    images = read(path)
                    check(images)
                    os.utime(path)
                    return images, path
        return None

    def keep(self, images: Arranged, listing: Listing, start: int) -> Path | None:
        """Write an index; None, and a line for the user, if that cannot be done."""
        if max(max(times) for times in listing.times.values()) > start - SETTLED:
            say_once(
                f"the list of {listing.number:,} images is not kept, because a folder was changed while they were "
                "listed, or just before"
            )
            return None
        tensors: dict[str, np.ndarray] = {
            "folders": Names.of(listing.times).block,
            "times": np.array(list(listing.times.values()), dtype=np.int64),
        }
        about: dict[str, Any] = {"started": start, "classes": images.classes, "notes": images.notes, "roots": {}}
        for split, part in (("train", images.train), ("val", images.val)):
            if part is not None:
                about["roots"][split] = part.root
                columns: dict[str, np.ndarray | None] = {"names": part.names.block, "ends": part.names.ends}
                columns |= {"labels": part.labels, "places": part.places}
                tensors |= {f"{split}.{name}": array for name, array in columns.items() if array is not None}
        about["digest"] = content_digest(tensors, about)
        path = self.folder / f"{self.name}-{start:x}.index"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with replacing(path) as draft:
                save_file(tensors, draft, {"esvit_pl": json.dumps(about)})
        except (OSError, SafetensorError) as error:
            say_once(
                f"the list of {listing.number:,} images cannot be kept in {shown(self.folder)} ({error}): every "
                "process lists them anew. XDG_CACHE_HOME names another folder, dataset.index=none keeps no list"
            )
            return None
        say_once(
            f"listed {listing.number:,} images in {(time.time_ns() - start) / 1e9:.0f} s; the list is kept in "
            f"{shown(path)} (dataset.index=rebuild makes it anew, none keeps none)"
        )
        with suppress(OSError):
            self._remove_unused()
        return path

    def _is_of_now(self, path: Path) -> bool:
        with safe_open(path, "np") as file:
            about = json.loads(file.metadata()["esvit_pl"])
            folders = file.get_tensor("folders").tobytes().split(b"\0")[:-1]
            times = file.get_tensor("times")
        if len(folders) != len(times) or not len(times) or times.max() > about["started"] - SETTLED:
            return False
        now = np.array(_times([os.path.join(self.root, os.fsdecode(name)) for name in folders]), dtype=np.int64)
        return bool((now == times).all())

    def _remove_unused(self) -> None:
        """Remove old indexes; the newest ones of this folder stay, because other machines may have mapped them."""
        by_age = sorted((-path.stat().st_mtime, path) for path in self.folder.glob("*.index"))
        mine = [path for _, path in by_age if path.name.startswith(self.name)]
        for age, path in by_age:
            if path in mine[STATES:] or -age < time.time() - UNUSED:
                path.unlink()


def read(path: str | Path) -> Arranged:
    """What an index file holds, mapped into memory."""
    with safe_open(path, "pt") as file:  # with numpy's arrays it copies
        about = json.loads(file.metadata()["esvit_pl"])
        arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}
    if about.pop("digest") != content_digest(arrays, about):
        raise ValueError(f"{path} is damaged")

    def images(split: str) -> Images:
        names = Names(arrays[f"{split}.names"], arrays[f"{split}.ends"])
        return Images(about["roots"][split], names, arrays.get(f"{split}.labels"), arrays.get(f"{split}.places"))

    val = images("val") if "val" in about["roots"] else None
    return Arranged(images("train"), val, about["classes"], tuple(about["notes"]))


def check(found: Arranged) -> None:
    """Refuse what no folder holds: names that lead out of it, classes without a name, lengths that differ.

    Raises:
        ValueError: there is such a thing.
    """
    classes = len(found.classes or ())
    for part in (found.train, *([] if found.val is None else [found.val])):
        (block, ends), number = (part.names.block, part.names.ends), len(part.names)
        whole = block.dtype == np.uint8 and ends.dtype == np.int64 and block.ndim == ends.ndim == 1 and number > 0
        if not whole or ends[0] < 2 or (np.diff(ends) < 2).any() or ends[-1] != len(block):
            raise ValueError("the ends of the names are not in order")
        text, nulls = os.fsencode(f"\0{part.root}/" if part.root else "") + b"\0", 0
        for start in range(0, len(block), CHUNK):
            chunk = block[start : start + CHUNK].tobytes()
            nulls += chunk.count(b"\0")
            text = text[-4:] + chunk if start else text + chunk
            if any(wrong in text for wrong in OUT_OF_THE_FOLDER):
                raise ValueError("a name leads out of the folder")
        if nulls != number or block[ends - 1].any():
            raise ValueError("there are null bytes in names")
        for column, kind in ((part.labels, np.int64), (part.places, np.float64)):
            if column is not None and (column.shape != (number,) or column.dtype != kind):
                raise ValueError("there are not as many numbers as names")
        if (part.labels is None) != (found.classes is None):
            raise ValueError("labels and classes do not belong together")
        if part.labels is not None and not (part.labels.min() >= 0 and part.labels.max() < classes):
            raise ValueError("a label has no class")


def cache_folder() -> Path:
    """Where lists are kept."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "esvit_pl", "listings")


@contextmanager
def one_at_a_time() -> Iterator[Any]:
    """Gives a function that waits until no other process lists this folder, and says whether one did."""
    descriptors: list[int] = []

    def wait(kept: Kept) -> bool:
        try:
            kept.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptors.append(os.open(kept.folder / f"{kept.name}.lock", os.O_CREAT | os.O_RDWR, 0o600))
        except OSError:
            return False
        waited, last = False, time.monotonic() + LONGEST_WAIT
        while time.monotonic() < last:
            try:
                fcntl.flock(descriptors[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = True
                time.sleep(0.1)
            except OSError:  # a file system without such locks
                break
        return waited

    try:
        yield wait
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _times(paths: Sequence[str]) -> list[tuple[int, int]]:
    """`times_of` each folder. Several threads ask, because a network drive takes its time for each answer."""
    result: list[tuple[int, int]] = [(0, 0)] * len(paths)

    def ask(first: int) -> None:
        result[first::THREADS] = [times_of(os.stat(path)) for path in paths[first::THREADS]]

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(ask, range(THREADS)))
    return result


def content_digest(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> str:
    """A hash of everything that an index file holds."""
    digest = blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=12)
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
