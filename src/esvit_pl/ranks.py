"""Processes that Lightning starts for a training on one machine: when one dies, all end, and one of them says why."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

from esvit_pl.distributed import is_of_a_collective
from esvit_pl.printing import say

EVERY = 0.5
"""Seconds between two looks at the others."""
GRACE = 20.0
"""Seconds in which a process may end by itself after another has died, for example to report its own error."""
_FIRST = "ESVIT_FIRST_RANK"


class RankDied(RuntimeError):
    """Another process of the training has ended, and this one cannot go on alone."""


class Death(NamedTuple):
    """How a process of the training ended too early.

    Attributes:
        sentence: which one, and how.
        code: exit code for the others: 128 plus the signal that has asked the process to end, else 1.
    """

    sentence: str
    code: int


@contextmanager
def watched(trainer: Any, tell: Callable[[Death], None]) -> Iterator[None]:
    """Train inside. A process that waits in vain for one that has died is ended after `GRACE` seconds.

    Without it the others wait as long as the collective's own limit, or for ever; and Lightning kills all of them with
    SIGKILL, so that nobody writes down what has happened. Processes that torchrun or SLURM has started are theirs.

    Args:
        trainer: a Trainer of pytorch_lightning, before it trains.
        tell: called in the first process before it is ended.

    Raises:
        RankDied: this process has noticed by itself, by the error of a collective.
    """
    launcher: Any = getattr(trainer.strategy, "launcher", None)
    starts_others = (
        hasattr(launcher, "procs")  # with popen, not with spawn or fork
        and getattr(launcher, "num_processes", 1) > 1
        and not launcher.cluster_environment.creates_processes_externally
    )
    first, over = os.environ.get(_FIRST), threading.Event()
    if starts_others:
        os.environ[_FIRST] = str(os.getpid())
    others: list[Any] = []

    def death() -> Death | None:
        if starts_others:
            _take(launcher, others)
            return death_of(others)
        return None if first is None or os.getppid() == int(first) else _FIRST_DIED

    def watch() -> None:
        while not over.wait(EVERY):
            found = death()
            if found is not None and not over.wait(GRACE):
                _end(found, others, tell)

    if first is not None and (found := death()) is not None:
        raise RankDied(found.sentence)
    if starts_others or first is not None:
        threading.Thread(target=watch, daemon=True, name="esvit-ranks").start()
    try:
        yield
    except RuntimeError as error:
        found = _soon(death) if starts_others or first is not None else None
        if found is None and not (first is not None and is_of_a_collective(error)):
            raise
        raise RankDied(found.sentence if found else "another rank has ended; the first one says which") from error
    finally:
        over.set()
        if starts_others:
            os.environ.pop(_FIRST, None)


def death_of(processes: Sequence[Any]) -> Death | None:
    """The first process that was killed, or else that failed, of ranks 1, 2, ...; None if none did."""
    failed = [(rank, process, process.poll()) for rank, process in enumerate(processes, start=1) if process.poll()]
    if not failed:
        return None
    rank, process, code = min(failed, key=lambda each: each[2] > 0)
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    sentence = (
        f"rank {rank} (process {process.pid}) {how}, and the others cannot go on without it; go on from the last "
        "checkpoint (ckpt_path=...)"
    )
    if -code in (signal.SIGTERM, signal.SIGINT):  # before it could end in order
        code = 128 - code
    return Death(sentence, code if code > 128 else 1)


_FIRST_DIED = Death("the first process of the training has ended, and the others cannot go on without it", 1)


def _take(launcher: Any, others: list[Any]) -> None:
    """Take the processes over from Lightning, which would kill all with SIGKILL as soon as one has died."""
    if len(launcher.procs) == launcher.num_processes - 1:
        others += launcher.procs
        launcher.procs.clear()


def _soon(death: Callable[[], Death | None]) -> Death | None:
    """A process whose end breaks a collective takes a moment to be gone."""
    for _ in range(10):
        found = death()
        if found is not None:
            return found
        time.sleep(EVERY)
    return None


def _end(found: Death, others: Sequence[Any], tell: Callable[[Death], None]) -> NoReturn:
    tell(found)
    say(found.sentence, to=sys.stderr)
    for process in others:
        process.kill()
    os._exit(found.code)
