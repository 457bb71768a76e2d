"""The rows of a table of results side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from esvit_pl.evaluation.names import PRETRAINED, PRETRAINED_SUBSET, PROBES, ROWS, figure_title
from esvit_pl.safe_text import for_figure
from esvit_pl.visualize.figures.style import BLUE, GREY, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def comparison(results: Mapping[str, Any], *, probes: Sequence[str] = tuple(PROBES)) -> Figure:
    """Accuracies of the pretrained network and its baselines side by side, one panel for each probe.

    Where the results say it, the 95 % intervals of the accuracies, and on how many images they were measured.

    Args:
        results: as in results.json, ``{"knn": {"chance": 0.05, ..., "pretrained": 0.63}, "linear": {...}}``; probes
            and rows that are missing or null are left out. ``{"evaluation": {"intervals": {"knn": {"pretrained":
            [0.60, 0.66]}}, "images": {"query": 1140}}}`` holds the intervals and the number.
        probes: which ones, in order.
    """
    tables = {probe: _rows(results.get(probe)) for probe in probes}
    tables = {probe: table for probe, table in tables.items() if table}
    if not tables:
        raise ValueError(f"comparison needs results of {' or '.join(probes)}, got {', '.join(results) or 'nothing'}")
    about = results.get("evaluation") or {}
    intervals, images = about.get("intervals") or {}, (about.get("images") or {}).get("query")
    longest = max(len(table) for table in tables.values())
    figure = new_figure(1 + 3.2 * len(tables), 1 + 0.45 * longest)
    panels = figure.subplots(1, len(tables), squeeze=False, sharex=True)[0]
    for axes, (probe, table) in zip(panels, tables.items(), strict=True):
        names = [for_figure(figure_title(name)) for name in table]
        values = [100 * value for value in table.values()]
        colours = [BLUE if name in (PRETRAINED, PRETRAINED_SUBSET) else GREY for name in table]
        axes.barh(names, values, color=colours, height=0.65)
        known = intervals.get(probe) or {}
        for name, row, value in zip(names, table, values, strict=True):
            low, high = (100 * end for end in known.get(row, (table[row], table[row])))
            if row in known:
                axes.plot((low, high), (name, name), color="0.15", linewidth=1, marker="|", markersize=6)
            axes.annotate(f"{value:.1f}", (high, name), (4, 0), textcoords="offset points", va="center", fontsize=9)
        axes.invert_yaxis()
        axes.set_title(for_figure(PROBES.get(probe, probe)), fontsize=10)
        what = "top-1 accuracy (%)" + (f" of {images:,} images" if images else "")
        axes.set_xlabel(f"{what}\nand its 95 % interval" if known else what)
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure


def _rows(table: Mapping[str, Any] | None) -> dict[str, float]:
    """Known rows in their order, then others; without those that hold no number."""
    table = table or {}
    order = [*(name for name in ROWS if name in table), *(name for name in table if name not in ROWS)]
    return {name: float(table[name]) for name in order if table[name] is not None}
