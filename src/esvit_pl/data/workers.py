"""What a loading process does with signals."""

from __future__ import annotations

import os
import signal
import threading


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
