"""What it takes to begin with a folder of very many images, before the first of them is opened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

CLASSES = 1000
START = """
import json, os, sys, time
sys.meta_path[:] = [f for f in sys.meta_path if "esvit" not in repr(f)] if sys.argv[2] else sys.meta_path
sys.path[:0] = [sys.argv[2]] if sys.argv[2] else []
import torch
from torch.utils.data import DataLoader
from esvit_pl import data, datasets
from esvit_pl.augment import Recipe

def held(pid, key):
    text = open(f"/proc/{pid}/smaps_rollup").read()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(key)) * 1024

class Places:
    def __init__(self, images): self.images = images
    def __len__(self): return len(self.images)
    def __getitem__(self, index): return len(self.images.path(index)), self.images.label(index)

before, start = held("self", "Private_Dirty"), time.perf_counter()
splits = datasets.folder(sys.argv[1])
module = data.ImageDataModule(splits, Recipe(), num_workers=0)
splits.describe(), module.state_dict()
seconds = time.perf_counter() - start
peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
own = held("self", "Private_Dirty") - before
loader = DataLoader(Places(splits.train), 1000, sampler=torch.randperm(len(splits.train))[:100_000], num_workers=4)
workers = iter(loader)
for _ in range(len(loader) - 8):  # not to the end, where they leave
    next(workers)
each = [held(worker.pid, "Private_Dirty") for worker in workers._workers]
print(json.dumps([seconds, own, peak, sum(each)]))
"""


class Start(NamedTuple):
    """Of a process that lists the images, tells what they are, and starts four loading processes."""

    images: str
    start: str
    until_ready_seconds: float
    own_bytes: int
    """Written by the process alone, for the images, when it is ready; what it maps of a file is not in it."""
    peak_bytes: int
    """The most that it held, libraries included."""
    workers_bytes: int
    """Written by the four loading processes, and shared with no other, when they have told 92,000 paths."""


def starts(files: int, *, source: str | None = None) -> Iterator[Start]:
    """The first start on made names (empty files in a thousand class folders), and a later one.

    Args:
        files: how many.
        source: the folder that holds another state of the package; None for this one.
    """
    with tempfile.TemporaryDirectory(prefix="listing-") as folder:
        make(Path(folder, "images"), files)
        for start in ("first", "second"):
            found = _start(Path(folder, "images"), Path(folder, "cache"), source or "")
            yield Start(f"{files:,}", start, *found)


def make(root: Path, files: int) -> None:
    """Empty files with ImageNet's kind of names."""
    for number in range(CLASSES):
        folder = root / f"n{number:08d}"
        folder.mkdir(parents=True)
        for image in range(number, files, CLASSES):
            os.close(os.open(folder / f"{folder.name}_{image}.JPEG", os.O_CREAT | os.O_WRONLY))


def _start(root: Path, cache: Path, source: str) -> list[Any]:
    time.sleep(3)  # a folder that was changed a moment ago is not trusted
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-c", START, str(root), source]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found
