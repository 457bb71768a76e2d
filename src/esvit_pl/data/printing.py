"""What the data module tells the user."""

from __future__ import annotations

from functools import cache


@cache
def say_once(line: str) -> None:
    """Print a line once in a process: an evaluation builds several data modules over the same data."""
    print(line, flush=True)
