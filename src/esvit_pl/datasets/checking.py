"""Every image of a data set decoded once: which are broken, tiny, odd or there twice, and what a run does with each."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from esvit_pl.datasets.bad_images import Reading
from esvit_pl.datasets.decode import look
from esvit_pl.datasets.interface import ImageDataset, Splits
from esvit_pl.datasets.listing import shown
from esvit_pl.datasets.pixels import PixelError
from esvit_pl.safe_text import for_csv

BAD = ("broken", "refused")
KINDS = {
    "broken": "files that cannot be decoded",
    "refused": "too large, empty, not a file, or of pixels that no rule covers",
    "leak": "the same picture in {0} and in {1}",
    "duplicate": "the same picture once more in {0} or {1}",
    "tiny": "shorter side below {smallest} px",
    "long": "more than {longest:g} times as long as wide",
    "one colour": "all pixels equal",
    "metadata": "metadata that cannot be read",
    "converted": "kinds of pixels that a rule turns into RGB (docs/pixels.md)",
}
"""Kind of finding -> what it means."""
SHOWN = 3


@dataclass
class CheckReport:
    """What `check` has found; as text a table of counts.

    >>> print(CheckReport(2, Counter(broken=1), {"broken": ["a.jpg"]}, meaning={"broken": "no image"}, named=1))
    2 images, 1 of them named below or in the file
    <BLANKLINE>
      broken  1  no image: a.jpg
    """

    images: int
    counts: Counter[str] = field(default_factory=Counter)
    """Kind -> images."""
    first: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Kind -> the first names."""
    meaning: dict[str, str] = field(default_factory=dict)
    named: int = 0
    """Images with a kind."""
    ends: str = ""
    """Why a run on these images would end, if it would."""

    def __str__(self) -> str:
        if not self.counts:
            return f"{self.images:,} images, and nothing to say about any of them"
        lines = [f"{self.images:,} images, {self.named:,} of them named below or in the file", ""]
        counts = {kind: f"{self.counts[kind]:,}" for kind in self.meaning if self.counts[kind]}
        wide, long = max(map(len, counts), default=0), max(map(len, counts.values()), default=0)
        for kind, count in counts.items():
            names = ", ".join(self.first[kind]) + (", ..." if self.counts[kind] > len(self.first[kind]) else "")
            lines.append(f"  {kind:<{wide}}  {count:>{long}}  {self.meaning[kind]}: {names}")
        return "\n".join(lines + ["", self.ends] * bool(self.ends))


def check(
    splits: Splits,
    out: str | Path,
    *,
    smallest: int = 96,
    longest: float = 4.0,
    num_workers: int = 0,
    progress: Callable[..., Iterable[Any]] = lambda found, total: found,
) -> CheckReport:
    """Decode every image of all splits once, and write a table of what there is to say.

    Memory does not grow with what is found: a row is written when it is known, and 16 bytes an image are kept to find
    duplicates.

    Args:
        out: the CSV file: split, image, kind, detail, run (what a run does with it).
        smallest: pixels of a shorter side below which an image is tiny.
        longest: ratio of the sides above which it is long.
        num_workers: processes that decode.
        progress: wraps the findings as tqdm does, ``tqdm(findings, total=number)``.
    """
    parts = [splits.train] if splits.val is None else [splits.train, splits.val]
    titles = ("bank", "query") if splits.val is None else ("train", "val")
    meaning = {kind: words.format(*titles, smallest=smallest, longest=longest) for kind, words in KINDS.items()}
    total = sum(map(len, parts))
    report = CheckReport(total, meaning=meaning)
    pixels, files = np.zeros(total, np.uint64), np.zeros(total, np.uint64)
    named = np.zeros(total, bool)
    part_of = _parts(splits)
    bad = np.zeros(total, bool)
    with Path(out).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(("split", "image", "kind", "detail", "run"))

        def write(number: int, kind: str, detail: str, run: str) -> None:
            name = _name(parts, number)
            writer.writerow((titles[part_of[number]], for_csv(name), kind, for_csv(detail), run))
            report.counts[kind], named[number] = report.counts[kind] + 1, True
            if len(report.first[kind]) < SHOWN:
                report.first[kind].append(shown(name))

        for number, found in enumerate(progress(_findings(parts, smallest, longest, num_workers), total=total)):
            pixels[number], files[number] = found.pixels, found.file
            for kind, detail in found.kinds.items():
                write(number, kind, detail, found.run)
                bad[number] |= kind in BAD
        for number, kind, detail in _repeated(pixels, files, part_of, titles, lambda at: _name(parts, at), parts):
            write(number, kind, detail, "read")
    report.named = int(named.sum())
    report.ends = _end(parts, bad) or _nothing_left(part_of, bad, titles)
    return report


class Finding(NamedTuple):
    """What one image has to say."""

    kinds: dict[str, str]
    """Kind -> detail."""
    run: str
    """What a run does with the image."""
    pixels: int
    """A hash of size and pixels; 0 if they cannot be read."""
    file: int
    """A hash of the file's bytes; 0 for an image that does not come from a file."""


class _Examined(Dataset[Finding]):
    def __init__(self, images: ImageDataset, smallest: int, longest: float) -> None:
        self.images, self.smallest, self.longest = images, smallest, longest
        self.reading: Reading = getattr(images, "reading", Reading())
        self.path: Callable[[int], str] | None = getattr(images, "path", None)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Finding:
        metadata: list[str] = []
        try:
            if self.path is None:
                (image, _), kind, rule, file = self.images[index], "", "", 0
            else:
                path = self.path(index)
                image, kind, rule = look(path, self.reading, metadata.append)
                file = _hash(Path(path).read_bytes())
        except ValueError as error:
            is_refused = isinstance(error.__cause__, PixelError)
            run = "ends" if self.reading.on_bad_image == "error" else "takes another image"
            return Finding({"refused" if is_refused else "broken": str(error)}, run, 0, 0)
        kinds = self._odd(image)
        if metadata:
            kinds["metadata"] = metadata[0]
        if rule:
            kinds["converted"] = f"{kind}: {rule}"
        return Finding(kinds, f"read, {rule}" if rule else "read", _hash_of_pixels(image), file)

    def _odd(self, image: Tensor) -> dict[str, str]:
        height, width = image.shape[-2:]
        kinds = {}
        if min(height, width) < self.smallest:
            kinds["tiny"] = f"{width} x {height}"
        if max(height, width) > self.longest * min(height, width):
            kinds["long"] = f"{width} x {height}"
        flat = image.flatten(1)
        if torch.equal(flat.amin(1), flat.amax(1)):
            kinds["one colour"] = "rgb " + " ".join(str(int(value)) for value in flat[:, 0])
        return kinds


def _findings(parts: list[ImageDataset], smallest: int, longest: float, num_workers: int) -> Iterator[Finding]:
    for images in parts:
        examined = _Examined(images, smallest, longest)
        loader: DataLoader[Any] = DataLoader(examined, 8, collate_fn=list, num_workers=num_workers)
        for batch in loader:
            yield from batch


def _parts(splits: Splits) -> np.ndarray:
    """For every image 0 if it belongs to the training or bank images, 1 for val or query."""
    if splits.val is not None:
        return np.repeat([0, 1], [len(splits.train), len(splits.val)])
    part = np.zeros(len(splits.train), np.int64)
    if len(splits.train) > 1:
        part[list(getattr(splits.query, "indices", ()))] = 1
    return part


def _repeated(
    pixels: np.ndarray,
    files: np.ndarray,
    part_of: np.ndarray,
    titles: tuple[str, str],
    name: Callable[[int], str],
    parts: list[ImageDataset],
) -> Iterator[tuple[int, str, str]]:
    """(image, "leak" or "duplicate", detail) of every image whose pixels an earlier one has."""
    values, counts = np.unique(pixels, return_counts=True)
    several = np.flatnonzero(np.isin(pixels, values[(counts > 1) & (values > 0)]))
    order = several[np.argsort(pixels[several], kind="stable")]
    labels = [label for images in parts for label in images.labels or ()] if len(order) else []
    for group in np.split(order, np.flatnonzero(np.diff(pixels[order])) + 1):
        for number in group[1:]:
            elsewhere = group[part_of[group] != part_of[number]]
            kind = "leak" if len(elsewhere) else "duplicate"
            other = int(elsewhere[0] if len(elsewhere) else group[0])
            what = "bytes" if files[number] and files[number] == files[other] else "pixels"
            detail = f"the same {what} as {titles[part_of[other]]} {name(other)}"
            if labels and labels[number] != labels[other]:
                detail += ", with another label"
            yield int(number), kind, detail


def _nothing_left(part_of: np.ndarray, bad: np.ndarray, titles: tuple[str, str]) -> str:
    for part, title in enumerate(titles):
        if (part_of == part).any() and bad[part_of == part].all():
            return f"a run on these images would end: no image of {title} can be read, so no other can take its place"
    return ""


def _end(parts: list[ImageDataset], bad: np.ndarray) -> str:
    each = np.split(bad, [len(parts[0])])
    for images, broken in zip(parts, [int(part.sum()) for part in each], strict=False):
        reading: Reading = getattr(images, "reading", Reading())
        if broken > reading.allowed(len(images)):
            advice = "mend or remove them"
            if reading.on_bad_image == "error":
                return f"a run on these images would end at the first bad one: {advice}, or dataset.on_bad_image=skip"
            return (
                f"a run on these images would end: {broken} of {len(images):,} are bad, and dataset.bad_image_budget="
                f"{reading.bad_image_budget:g} allows {reading.allowed(len(images))}; {advice}, or raise it"
            )
    return ""


def _name(parts: list[ImageDataset], number: int) -> str:
    first = len(parts[0])
    return parts[0].name(number) if number < first else parts[1].name(number - first)


def _hash_of_pixels(image: Tensor) -> int:
    return _hash(repr(tuple(image.shape)).encode() + image.permute(1, 2, 0).contiguous().numpy().tobytes())


def _hash(data: bytes) -> int:
    """64 bits, never 0."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") | 1
