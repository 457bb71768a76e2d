"""``bad_images.csv`` of a run: the images that could not be read, and those whose metadata could not."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from esvit_pl.datasets import UNREADABLE_METADATA, Splits
from esvit_pl.datasets.listing import shown
from esvit_pl.distributed import num_ranks, rank
from esvit_pl.printing import say
from esvit_pl.runs.folder import RunFolder
from esvit_pl.safe_text import for_csv

SHOWN = 5


@contextmanager
def kept(run: RunFolder, splits: Splits) -> Iterator[None]:
    """Write the file, whatever comes of what runs inside, and print the counts if it ends well."""
    try:
        yield
    except BaseException:
        _write(run, splits)
        raise
    found = _write(run, splits)
    if run.writes:
        for line in lines(found, run.path):
            say(line)


def lines(found: list[tuple[str, str, str]], folder: Path) -> list[str]:
    """What to say about `Splits.problems`."""
    whose = f" by the first of {num_ranks()} processes" if num_ranks() > 1 else ""
    broken = [shown(name) for _, name, sentence in found if sentence != UNREADABLE_METADATA]
    metadata, said = len(found) - len(broken), []
    if broken:
        names = ", ".join(broken[:SHOWN]) + (", ..." if len(broken) > SHOWN else "")
        said.append(
            f"images that could not be read{whose}: {len(broken):,}, and others of the same split took their places, "
            f"with labels of their own: {names}; {folder / 'bad_images.csv'} says why"
        )
    if metadata:
        said.append(
            f"images whose metadata could not be read{whose}: {metadata:,}; their pixels were taken as they lie there"
        )
    return said


def _write(run: RunFolder, splits: Splits) -> list[tuple[str, str, str]]:
    # Each process has met images of its own, and so has the run that is resumed.
    path = run.path / ("bad_images.csv" if run.writes else f"bad_images_{rank()}.csv")
    found = {(split, for_csv(image)): for_csv(sentence) for split, image, sentence in splits.problems()}
    if path.is_file():
        with _opened(path, "r") as file:
            found = {(split, image): sentence for split, image, sentence in list(csv.reader(file))[1:]} | found
    rows = sorted((*place, sentence) for place, sentence in found.items())
    if rows:
        with _opened(path, "w") as file:
            csv.writer(file).writerows([("split", "image", "problem"), *rows])
    return rows


def _opened(path: Path, mode: str) -> IO[str]:
    return path.open(mode, newline="", encoding="utf-8", errors="surrogateescape")
