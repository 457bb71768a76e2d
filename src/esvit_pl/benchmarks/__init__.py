"""Functions that return numbers; ``python -m esvit_pl.benchmarks`` prints them."""

from esvit_pl.benchmarks.step import step_seconds

__all__ = ["step_seconds"]
