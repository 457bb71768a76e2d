"""Which image each loading process is at, so that one that hangs or dies can be told with its file."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import get_worker_info

from esvit_pl.datasets import ImageDataset
from esvit_pl.datasets.listing import shown

PROCESSES = 1024
_FEWER = (
    "take fewer processes (datamodule.num_workers=), a smaller datamodule.batch_size, or a lower dataset.max_pixels"
)
_CRASHED = "look at the file (esvit-data check reads all of them), or leave it out"
_ADVICE = {
    "SIGKILL": f"the system does this when memory runs out (free -h, dmesg): {_FEWER}",
    "SIGBUS": f"shared memory is full (df -h /dev/shm; docker run --shm-size=8g), or a file was cut: {_FEWER}",
}
_NOTHING_YET = torch.iinfo(torch.int64).min


class LoadingStopped(RuntimeError):
    """A loading process hangs, or has died."""


class AtWork:
    """The image at which each loading process of a data set is, in shared memory that they write into.

    >>> at_work = AtWork()
    >>> with at_work.on(7):
    ...     at_work.image(0)
    (7, True)
    >>> at_work.image(0)
    (7, False)
    """

    def __init__(self) -> None:
        with torch.inference_mode(False):  # a measurement makes its loaders in that mode, and may not write later
            self._images = torch.full((PROCESSES,), _NOTHING_YET, dtype=torch.int64).share_memory_()

    @contextmanager
    def on(self, index: int) -> Iterator[None]:
        """This process opens an image; it has not finished it if it dies inside."""
        worker = get_worker_info()
        place = 0 if worker is None else worker.id % PROCESSES
        self._images[place] = index
        yield
        self._images[place] = ~index

    def image(self, worker: int) -> tuple[int, bool] | None:
        """The image that a process opened last, and whether it is still at it."""
        index = int(self._images[worker % PROCESSES])
        if index == _NOTHING_YET:
            return None
        return (index, True) if index >= 0 else (~index, False)


def in_words(error: BaseException, workers: list[Any], at_work: AtWork, images: ImageDataset) -> str | None:
    """What torch's error about its loading processes means, with the files that they were at; None for other errors."""
    text = str(error)
    place = getattr(images, "path", images.name)
    late = re.search(r"DataLoader timed out after ([\d.]+) seconds", text)
    if late:
        opened = [(number, at_work.image(number)) for number in range(len(workers))]
        files = [f"'{shown(place(at[0]))}' (process {workers[number].pid})" for number, at in opened if at and at[1]]
        return (
            f"no batch came from the loading processes for {float(late[1]):g} s; they are at "
            f"{', '.join(files) or 'no image: they wait themselves'}. Look at these files and at the drive that holds "
            "them; datamodule.timeout= is the longest wait in seconds, and 0 waits for ever"
        )
    dead = re.search(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (.*)", text)
    if dead is None:
        return None
    pids = [int(pid) for pid in dead[1].split(",")]
    files, code = [], None
    for number, worker in enumerate(workers):
        if worker.pid in pids:
            code = worker.exitcode  # which torch's own words do not always hold
            at = at_work.image(number)
            if at is not None:
                files.append(f"{'at' if at[1] else 'just after'} '{shown(place(at[0]))}'")
    name = signal.Signals(-code).name if code is not None and code < 0 else ""
    end = f"was killed by {name}" if name else f"ended (exit code {code})"
    where = f", {', '.join(files)}" if files else ""
    return f"loading process {dead[1]} {end}{where}; {_ADVICE.get(name, _CRASHED)}"
