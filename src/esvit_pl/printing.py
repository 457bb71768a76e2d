"""The one door through which this package prints: nothing that somebody else has named moves the cursor behind it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
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


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Show warnings of this package as "warning: ..." without the place in its code, and `record` them.

    Those of other packages stay as they are, and so does what a filter does with any.

    >>> with warnings_as_lines():
    ...     print(warnings.formatwarning("k-NN falls", UserWarning, __file__, 1), end="")
    warning: k-NN falls
    """
    usual = warnings.formatwarning

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if not (category.__module__.startswith("esvit_pl") or Path(filename).is_relative_to(Path(__file__).parent)):
            return usual(message, category, filename, lineno, line)
        said = lines_for_terminal(f"warning: {message}")
        record(said)
        return f"{said}\n"

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = usual


@cache
def say_once(line: str) -> None:
    """Print a line once in a training, by the first of its processes: several parts look at the same data."""
    from esvit_pl.distributed import rank  # which loads torch

    if rank() == 0:
        say(line)
