"""The one door through which this package prints: nothing that somebody else has named moves the cursor behind it."""

from __future__ import annotations

import logging
import sys
from functools import cache
from typing import TextIO

from esvit_pl.safe_text import lines_for_terminal


def say(text: object, *, to: TextIO | None = None) -> None:
    """Print lines for the user, and `record` what goes to stdout; control characters are shown as escapes.

    >>> say("class a\\x1b[2J: 3 images")
    class a\\x1b[2J: 3 images

    Args:
        text: names in it that may hold a line break have gone through `safe_text.for_terminal`.
        to: the stream; None for stdout.
    """
    lines = lines_for_terminal(str(text))
    print(lines, file=to or sys.stdout, flush=True)
    if to is None:
        record(lines)


def record(lines: str) -> None:
    """Write lines to the files that Python's root logger writes, such as ``pretrain.log`` of a run."""
    files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    for file in files:
        file.handle(logging.LogRecord("esvit_pl", logging.INFO, __file__, 0, lines, None, None))


@cache
def say_once(line: str) -> None:
    """Print a line once in a training, by the first of its processes: several parts look at the same data."""
    from esvit_pl.distributed import rank  # which loads torch

    if rank() == 0:
        say(line)
