"""Signals that ask a process to end: obeyed in order, or kept until it is a good moment."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

Handler = Callable[[int, FrameType | None], Any] | int | None

_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")


@contextmanager
def end_in_order() -> Iterator[None]:
    """Inside, SIGTERM, SIGUSR1 and SIGHUP raise SystemExit (128 plus the number), as Ctrl-C raises KeyboardInterrupt.

    By itself the system ends a process at once, and nothing is written or released. Signals that are ignored, as with
    nohup, or that somebody else handles stay so.

    >>> with end_in_order():
    ...     signal.raise_signal(signal.SIGTERM)
    Traceback (most recent call last):
    SystemExit: 143
    """
    mine = [number for number in _numbers() if signal.getsignal(number) is signal.SIG_DFL]
    stop = _Stop()
    for number in mine:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in mine:
            if signal.getsignal(number) is stop:
                signal.signal(number, signal.SIG_DFL)


class _Stop:
    """The handler of `end_in_order`."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:
        if os.getpid() != self._process:  # a copy of the process, which has nothing to put in order
            os._exit(128 + number)
        raise SystemExit(128 + number)


class Signals:
    """Remembers a signal that asks the process to end. A second signal does what it did before `listen`.

    Attributes:
        number: of the signal that has come; 0 before.

    >>> signals = Signals()
    >>> signals.listen()
    >>> signal.raise_signal(signal.SIGTERM)
    >>> signals.number == signal.SIGTERM
    True
    >>> signals.leave()
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Handler] = {}

    def listen(self) -> None:
        """Take over the signals, but for those that somebody else has taken or that are ignored (as nohup does)."""
        self.leave()
        self.number = 0
        for number in _numbers():
            handler = signal.getsignal(number)
            usual = handler is signal.SIG_DFL or isinstance(handler, _Stop)
            if usual or number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = handler
                signal.signal(number, self._note)

    def leave(self) -> None:
        """Give the signals back to those who had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            self.leave()
            os.kill(os.getpid(), number)
        self.number = number


def _numbers() -> list[int]:
    """Those that this system has; none outside the main thread, where Python allows no handlers."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name)]
