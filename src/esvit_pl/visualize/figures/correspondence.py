"""Two views with lines between the regions that belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from esvit_pl.visualize.correspondence import MatchedViews
from esvit_pl.visualize.figures.style import BLUE, GREEN, GREY, ORANGE, RED, new_figure, pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP = 0.08
"""Room between the views, as a share of the first one's width."""
KINDS: dict[str, tuple[str, Any]] = {
    "right": (GREEN, "-"),
    "one region away": (BLUE, "--"),
    "wrong": (RED, ":"),
    "unknown": (GREY, "-"),
}
"""How a pair is drawn: colour and line."""


def draw_correspondence(matched: MatchedViews, *, title: str = "") -> Figure:
    """The views side by side; each pair has a line with its rank, and right and wrong ones differ in colour and form.

    A disc marks the region most like the view's own global feature, a square the one most like the other view's.

    Args:
        matched: of `visualize.matched_views`.
    """
    from matplotlib.lines import Line2D

    left, right = (pixels(view) for view in matched.views)
    gap = GAP * left.shape[1]
    offset = np.array([left.shape[1] + gap, 0])
    width, height = offset[0] + right.shape[1], max(left.shape[0], right.shape[0])
    figure = new_figure(7.6, 7.6 * height / width + 0.9)
    axes = figure.subplots()
    for picture, x in ((left, 0), (right, offset[0])):
        axes.imshow(
            picture, cmap="gray", vmin=0, vmax=1, extent=(x, x + picture.shape[1], picture.shape[0], 0), aspect="equal"
        )
    kinds = kinds_of(matched)
    for rank, (start, end, kind) in reversed(list(enumerate(zip(matched.starts, matched.ends, kinds, strict=True), 1))):
        colour, line = KINDS[kind]
        xs, ys = zip(start, end + offset, strict=True)
        axes.plot(xs, ys, color="white", linewidth=2.6, alpha=0.7)
        axes.plot(xs, ys, color=colour, linestyle=line, linewidth=1.5)
        for x, y in zip(xs, ys, strict=True):
            box = {"boxstyle": "circle,pad=0.2", "facecolor": colour, "edgecolor": "white", "linewidth": 0.6}
            axes.text(x, y, str(rank), color="white", fontsize=7, ha="center", va="center", bbox=box)
    mark: dict[str, Any] = {"color": "none", "markeredgecolor": ORANGE, "markeredgewidth": 2, "linestyle": ""}
    for (own, others), shift in zip(matched.likest, (np.zeros(2), offset), strict=True):
        axes.plot(*(own + shift), marker="o", markersize=17, **mark)
        axes.plot(*(others + shift), marker="s", markersize=21, **mark)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    axes.set_title(title, fontsize=10)
    handles = [
        Line2D([], [], color=KINDS[kind][0], linestyle=KINDS[kind][1], label=f"{kind} ({kinds.count(kind)})")
        for kind in KINDS
        if kind in kinds and kind != "unknown"
    ]
    handles += [
        Line2D([], [], marker="o", markersize=8, label="most like its own global feature", **mark),
        Line2D([], [], marker="s", markersize=8, label="most like the other's", **mark),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def kinds_of(matched: MatchedViews) -> list[str]:
    """The key in `KINDS` for each pair."""
    if matched.steps is None:
        return ["unknown"] * len(matched.starts)
    return ["right" if step == 0 else "one region away" if step == 1 else "wrong" for step in matched.steps]
