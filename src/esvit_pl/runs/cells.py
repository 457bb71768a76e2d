"""A table of texts, heading first, for a terminal, Markdown, LaTeX and CSV. Names that others made up are made safe."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from esvit_pl.safe_text import for_csv, for_latex, for_markdown, for_terminal

Cells = Sequence[Sequence[str]]


def as_text(cells: Cells) -> str:
    """For a terminal, all columns but the first to the right.

    >>> print(as_text([["", "k-NN"], ["this run", "78.0"]]))
              k-NN
    this run  78.0
    """
    columns = list(zip(*([for_terminal(cell) for cell in row] for row in cells), strict=True))
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join([f"{name:<{widths[0]}}", *(f"{x:>{w}}" for x, w in zip(row, widths[1:], strict=True))]).rstrip()
        for name, *row in zip(*columns, strict=True)
    )


def as_markdown(cells: Cells) -> str:
    head, *rows = [[for_markdown(cell) for cell in row] for row in cells]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_latex(cells: Cells) -> str:
    """A tabular of booktabs."""
    head, *rows = [" & ".join(for_latex(cell) for cell in row) + r" \\" for row in cells]
    body = [r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{l{'r' * (len(cells[0]) - 1)}}}", *body, r"\end{tabular}"])


def as_csv(rows: Sequence[Sequence[Any]]) -> str:
    """Numbers stay numbers, in full."""
    text = io.StringIO()
    cells = ([for_csv(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()
