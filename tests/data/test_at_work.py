"""A loading process that hangs or dies ends the pass with a sentence that names its image."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import time

import pytest
import torch

from esvit_pl.augment import Recipe
from esvit_pl.data import ImageDataModule
from esvit_pl.data.at_work import AtWork, LoadingStopped
from esvit_pl.datasets import ArrayDataset, Splits


class Faulty(ArrayDataset):
    """Image 5 does what `fault` does."""

    def __init__(self, fault) -> None:
        super().__init__(torch.zeros(16, 3, 20, 20, dtype=torch.uint8), [f"{i}.png" for i in range(16)])
        self.fault = fault

    def __getitem__(self, index):
        if index == 5:
            self.fault()
        return super().__getitem__(index)


def never_ends() -> None:
    time.sleep(10_000)


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hits_full_shared_memory() -> None:
    os.kill(os.getpid(), signal.SIGBUS)


def crashes() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves() -> None:
    os._exit(3)


FAULTS = {
    never_ends: r"no batch came from the loading processes for 2 s; they are at '5.png' \(process \d+\)",
    is_killed: r"loading process \d+ was killed by SIGKILL, at '5.png'; the system does this when memory runs",
    hits_full_shared_memory: r"was killed by SIGBUS, at '5.png'; shared memory is full \(df -h /dev/shm",
    crashes: r"was killed by SIGSEGV, at '5.png'; look at the file",
    leaves: r"loading process \d+ ended \(exit code 3\), at '5.png'; look at the file",
}


@pytest.mark.fault(
    "loading process: it hangs (a drive that does not answer, a data set of your own that waits for ever)",
    "after `datamodule.timeout=` seconds (300; 0 waits for ever) the run ends and names the images at which they are",
)
@pytest.mark.fault(
    "loading process: it is killed, by the system when memory or `/dev/shm` is full, or by a crash in a library",
    "the run ends at once: the signal, the image that it was at (or had just finished), and settings that need less",
)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("loader", ["train", "bank"])
# Torch raises inside its signal handler, so at any line, and a socket that was just being opened is left to the
# garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_the_image_is_named(fault, loader):
    data = ImageDataModule(
        Splits(Faulty(fault), Faulty(lambda: None)),
        Recipe(global_size=16, local_size=8),
        batch_size=4,
        eval_batch_size=4,
        num_workers=2,
        timeout=2,
        persistent_workers=False,
    )
    start = time.monotonic()
    batches = iter(getattr(data, f"{loader}_dataloader")())
    try:
        for _ in batches:
            pass
        told = "nothing"
    except LoadingStopped as error:
        told = str(error)
    except RuntimeError as error:  # torch's signal handler raises between two batches, too
        told = batches.in_words(error) or str(error)
    assert re.search(FAULTS[fault], told), told
    assert time.monotonic() - start < 60


def test_a_loader_that_nobody_holds_has_no_processes():
    """One that waits for the garbage collector ends in the middle of a later pass, and takes that pass's errors."""
    images = Splits(Faulty(lambda: None))
    data = ImageDataModule(images, Recipe(global_size=16, local_size=8), batch_size=4, num_workers=2)
    gc.collect()
    gc.disable()
    try:
        loader = data.train_dataloader()
        next(iter(loader))
        workers = set(multiprocessing.active_children())
        assert len(workers) == 2
        del loader
        assert not workers & set(multiprocessing.active_children())
    finally:
        gc.enable()


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match="timeout must be a number of seconds, or 0 to wait for ever, got -1"):
        ImageDataModule(Splits(Faulty(leaves)), Recipe(), timeout=-1)


def test_made_in_inference_mode_it_can_still_be_written_outside():
    with torch.inference_mode():
        at_work = AtWork()
    with at_work.on(3):
        assert at_work.image(0) == (3, True)
