"""What a loading process does with signals, and what it shares with the training."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sharing_memory() -> Iterator[None]:
    """Loading processes that are started inside share the objects that there are now, for as long as they live.

    Python's collector writes into every object that it looks at, and a page that one process has written to is shared
    no more: with two loading processes a training would grow by more than 100 MiB at its first full collection.
    """
    if gc.get_freeze_count():  # somebody else has frozen theirs
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def obey_the_training(worker: int = 0) -> None:
    """Called in a loading process: it ends when the process that started it ends or says so, and at no other's signal.

    Ctrl-C, ``timeout`` and SLURM send a signal to all processes of a job. The training needs its batches until it has
    finished its step and saved it.
    """
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS and Windows have none; there SIGTERM ends the process
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_at_a_word_of, args=(os.getppid(),), daemon=True).start()


def _end_at_a_word_of(parent: int) -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent:
            os._exit(0)
