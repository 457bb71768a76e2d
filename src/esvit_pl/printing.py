"""Lines for the user, each printed once."""

from __future__ import annotations

from functools import cache

from esvit_pl.distributed import rank


@cache
def say_once(line: str) -> None:
    """Print a line once in a training, by the first of its processes: several parts look at the same data."""
    if rank() == 0:
        print(line, flush=True)
