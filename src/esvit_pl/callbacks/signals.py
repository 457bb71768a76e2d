"""Signals that ask a process to end, kept until it is a good moment."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | int | None


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
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows it in the main thread alone
        for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has two of them
            if number is None:
                continue
            handler = signal.getsignal(number)
            if handler is signal.SIG_DFL or name in ("SIGTERM", "SIGINT"):
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
