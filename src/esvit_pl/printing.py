"""The one door through which this package prints: nothing that somebody else has named moves the cursor behind it."""

from __future__ import annotations

import sys
from functools import cache
from typing import TextIO

from esvit_pl.safe_text import lines_for_terminal


def say(text: object, *, to: TextIO | None = None) -> None:
    """Print lines for the user, and show control characters in them as escapes.

    >>> say("class a\\x1b[2J: 3 images")
    class a\\x1b[2J: 3 images

    Args:
        text: names in it that may hold a line break have gone through `safe_text.for_terminal`.
        to: the stream; None for stdout.
    """
    print(lines_for_terminal(str(text)), file=to or sys.stdout, flush=True)


@cache
def say_once(line: str) -> None:
    """Print a line once in a training, by the first of its processes: several parts look at the same data."""
    from esvit_pl.distributed import rank  # which loads torch

    if rank() == 0:
        say(line)
